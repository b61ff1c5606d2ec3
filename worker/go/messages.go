package portreeve

import (
	"net/netip"
	"reflect"
)

// Unlimited is the value of a limit or a duration that has no end.
const Unlimited = ^uint64(0)

// The kinds of the operations.
const (
	kindHello uint16 = iota + 1
	kindPing
	kindListen
	kindListenMany
	kindStop
	kindStatus
	kindAddAddress
	kindRenewAddress
	kindRemoveAddress
	kindAnnounce
	kindListAddresses
	kindSetLink
	kindMoveAddress
	kindSetLimit
	kindPolicy
	kindSubscribe
)

// A choice is a message that succeeded, or the fault.
type choice[T any] struct {
	done  *T
	fault *Fault
}

func (c *choice[T]) put(e *encoder) {
	if c.fault != nil {
		e.number(4, 1)
		e.value(reflect.ValueOf(*c.fault), tag{}, "fault")
	} else {
		e.number(4, 0)
		e.value(reflect.ValueOf(*c.done), tag{}, "result")
	}
}

func (c *choice[T]) get(d *decoder) {
	switch tag_ := d.number(4); tag_ {
	case 0:
		c.done = new(T)
		d.value(reflect.ValueOf(c.done).Elem(), tag{})
	case 1:
		c.fault = new(Fault)
		d.value(reflect.ValueOf(c.fault).Elem(), tag{})
	default:
		d.fail("a result has the unknown tag %d", tag_)
	}
}

type hello struct {
	Client   string `wire:"64"`
	Features uint64
}

// A Welcome is the broker's reply to the opening of the session.
type Welcome struct {
	// Broker is the broker's process id, in its own pid namespace.
	Broker   uint32
	Release  string `wire:"32"`
	Features uint64
	// Capabilities is the set of the broker's capabilities, bit n for capability n.
	Capabilities uint64
	// Peer is this peer's identity according to the broker.
	Peer string `wire:"64"`
	// Operations are the operations that policy allows this peer.
	Operations []string `wire:"32,16"`
}

type empty struct{}

// ListenOptions are the options of a listener's socket. An option that is not set has the value of the broker's configuration.
type ListenOptions struct {
	// Backlog is the length of the accept queue; see listen(2).
	Backlog *uint32
	// ReusePort is SO_REUSEPORT: several sockets may share the endpoint.
	ReusePort bool
	// DualStack lets an IPv6 wildcard accept IPv4 as well.
	DualStack bool
	// FreeBind is IP_FREEBIND: bind an address that this host does not have yet.
	FreeBind bool
	// Device is SO_BINDTODEVICE: receive packets of this interface only; empty for all.
	Device string `wire:"15"`
	// ReceiveBuffer is SO_RCVBUF in bytes; 0 leaves the size to the kernel.
	ReceiveBuffer *uint32
	// SendBuffer is SO_SNDBUF in bytes; 0 leaves the size to the kernel.
	SendBuffer *uint32
	// NoDelay is TCP_NODELAY, which accepted connections inherit. Go sets it for every connection itself.
	NoDelay *bool
	// DeferAccept is TCP_DEFER_ACCEPT in seconds; 0 turns it off.
	DeferAccept uint32
	// FastOpen is TCP_FASTOPEN: the maximum number of connections whose handshake is not complete; 0 turns it off.
	FastOpen uint32
	// Mode is the permission bits of a Unix socket's file.
	Mode *uint32
	// Unkept asks the broker to keep no copy of the socket: the endpoint is free as soon as every copy is closed, and the
	// listener ends with the session. It needs a permit with "unkept = true", and is the same for all listeners of a batch.
	Unkept bool `wire:"-"`
}

// featureListenMode is the feature "listen-mode": requests for listeners can have a mode.
const featureListenMode = 2

type listenMode struct{ Kept, Intercepted bool }

type listen struct {
	ListenRequest
	ListenMode *listenMode `wire:"trailing"`
}

// A ListenRequest is one listener of a batch.
type ListenRequest struct {
	Endpoint Endpoint
	Options  ListenOptions
}

type listening struct{ ID uint64 }

type listenMany struct {
	AllOrNothing bool
	Listeners    []ListenRequest `wire:"253"`
	ListenMode   *listenMode     `wire:"trailing"`
}

type listeningMany struct {
	Results []choice[listening] `wire:"253"`
}

type stop struct {
	Listeners []uint64 `wire:"253"`
}

// Stopped is the result of a stop.
type Stopped struct {
	// Unknown are the numbers that are not listeners of this peer; they are ignored.
	Unknown []uint64 `wire:"253"`
	// NotRevoked are the numbers of stopped listeners that a process with a copy of the socket can listen on again.
	NotRevoked []uint64 `wire:"253"`
}

// Credentials are the credentials of a process, as in /proc/pid/status.
type Credentials struct {
	UID          [4]uint32
	GID          [4]uint32
	Groups       []uint32 `wire:"64"`
	Inheritable  uint64
	Permitted    uint64
	Effective    uint64
	Bounding     uint64
	Ambient      uint64
	NoNewPrivs   bool
	SeccompState uint8
}

// A Process is a process of the broker.
type Process struct {
	Role        string `wire:"16"`
	PID         uint32
	Restarts    uint32
	Root        string `wire:"256"`
	Credentials Credentials
	Locks       []string `wire:"8,128"`
}

// A Quota is a quota of one peer.
type Quota struct {
	Name  string `wire:"32"`
	Limit uint64
}

// A SessionRow is an open session in the status of the broker.
type SessionRow struct {
	ID        uint64
	Peer      string `wire:"64"`
	Client    string `wire:"64"`
	PID       uint32
	Listeners uint32
	Refused   uint64
}

// A ListenerRow is a listener in the status of the broker.
type ListenerRow struct {
	ID       uint64
	Endpoint string `wire:"128"`
	Owner    string `wire:"64"`
	Retained bool
}

// A Status is the state of the broker, with one page of its listeners.
type Status struct {
	Release       string `wire:"32"`
	UptimeMS      uint64
	Processes     []Process `wire:"8"`
	Warnings      []string  `wire:"16,256"`
	Quotas        []Quota   `wire:"16"`
	ListenersHeld uint64
	Sessions      []SessionRow  `wire:"64"`
	Listeners     []ListenerRow `wire:"128"`
	// Next is the argument for the next page; 0 if this page is the last.
	Next uint64
}

type statusRequest struct{ After uint64 }

type addAddress struct {
	Addresses []netip.Addr `wire:"256"`
	Lease     *uint32
	Epoch     uint64
	Probes    uint8
	Announce  bool
	Until     *uint64 `wire:"trailing"`
}

type renewAddress struct {
	Addresses []netip.Addr `wire:"256"`
	Lease     *uint32
	Epoch     uint64
	Until     *uint64 `wire:"trailing"`
}

type removeAddress struct {
	Addresses []netip.Addr `wire:"256"`
	Epoch     uint64
}

type moveAddress struct {
	Addresses []netip.Addr `wire:"256"`
	Interface string       `wire:"15"`
	Epoch     uint64
	Announce  bool
}

type leaseTimes struct {
	Now       uint64
	Deadlines []uint64 `wire:"256"`
}

type leases struct {
	Results []choice[Lease] `wire:"256"`
	Times   *leaseTimes     `wire:"trailing"`
}

// A Lease is an address that this host has until its lease ends.
type Lease struct {
	Address   netip.Addr
	Interface string `wire:"15"`
	Prefix    uint8
	// RemainingMS are the milliseconds until the lease ends; Unlimited if the address is permanent.
	RemainingMS uint64
	Epoch       uint64
	Follows     *netip.Addr
}

// A Removal is an address that was removed.
type Removal struct {
	Address netip.Addr
	// Verified tells whether the kernel's routing tables confirm that this host no longer has the address.
	Verified bool
}

type removals struct {
	Results []choice[Removal] `wire:"256"`
}

type listAddresses struct{ After *netip.Addr }

// An AddressRow is an address that the broker manages.
type AddressRow struct {
	Lease  Lease
	Holder string `wire:"64"`
	// Present tells whether the interface has the address now.
	Present bool
}

type pageTimes struct {
	Leases                 leaseTimes
	IPv4Fenced, IPv6Fenced bool
}

// An AddressPage is one page of the addresses that the broker manages.
type AddressPage struct {
	Fenced    bool
	Addresses []AddressRow `wire:"256"`
	// More tells whether more addresses follow the last one of this page.
	More  bool
	Times *pageTimes `wire:"trailing"`
}

type setLimit struct {
	Resource   string `wire:"16"`
	Soft, Hard *uint64
}

// A Limit is a resource limit in force.
type Limit struct {
	Resource   string `wire:"16"`
	Soft, Hard uint64
}

type policyRequest struct{ After uint32 }

// A PolicyRule is a rule that allows this peer a request.
type PolicyRule struct {
	// Place is the position of the line, as file:line.
	Place string `wire:"160"`
	Text  string `wire:"160"`
}

// A TopologyBlock is a block of addresses and its interface.
type TopologyBlock struct {
	Block     netip.Addr
	Prefix    uint8
	Interface string `wire:"15"`
	Mask      uint8
}

// A FloatingAddress is an address that moves between hosts.
type FloatingAddress struct {
	Address    netip.Addr
	Name       string `wire:"64"`
	Preference string `wire:"64"`
	Follows    *netip.Addr
	Interface  string `wire:"15"`
	Prefix     uint8
}

// A PolicyPage is one page of what applies to this peer.
type PolicyPage struct {
	Nodename string `wire:"64"`
	// Lease is the default length of a lease in seconds.
	Lease    uint32
	Rules    []PolicyRule      `wire:"64"`
	Topology []TopologyBlock   `wire:"64"`
	Floating []FloatingAddress `wire:"64"`
	// Next is the argument for the next page; 0 if this page is the last.
	Next uint32
}

type subscribe struct{ Follow, All bool }

type subscribed struct {
	All    bool
	Recent []Event `wire:"128"`
}

// An EventCode is the kind of an event; see "Events" in WIRE.md.
type EventCode uint16

// The codes that this package knows. A later broker can send others.
const (
	Gap EventCode = iota + 1
	AddressAdded
	AddressRemoved
	AddressLost
	AddressRestored
	AddressConflict
	AddressExpired
	AddressLeaving
	AddressMoved
	LinkUp
	LinkDown
	LinkGone
	LinkRenamed
	WorkerStarted
	WorkerEnded
	Reloaded
	ReloadFailed
	TakenOver
	ListenerStarted
	ListenerStopping
	ListenerLost
	ListenerRestored
)

// An Event is something that happened. A field that does not apply to the code is 0, nil or empty.
type Event struct {
	Number    uint64
	TimeMS    uint64
	Code      EventCode
	Address   *netip.Addr
	Interface string `wire:"15"`
	Index     uint32
	PID       uint32
	Epoch     uint64
	Count     uint64
	Detail    string `wire:"256"`
}
