package portreeve

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	longestLease = 24 * time.Hour
	// renewalParts is into how many parts a lease is divided; it is renewed after each, so that several attempts fit.
	renewalParts  = 5
	clockBoottime = 7
)

// AddressOptions say how an address is added. By default it has the configured lease, is probed three times and announced.
type AddressOptions struct {
	// Lease is the length of the lease in seconds, at least 3; 0 is a permanent address.
	Lease *uint32
	// Epoch is a fencing token, from the party that decides which host owns the address; 0 if unused.
	Epoch uint64
	// NoProbes adds the address without probing for another host that has it.
	NoProbes bool
	// Quiet adds the address without announcing it to the neighbours.
	Quiet bool
}

func (o AddressOptions) request(addresses []netip.Addr) addAddress {
	probes := uint8(3)
	if o.NoProbes {
		probes = 0
	}
	return addAddress{Addresses: addresses, Lease: o.Lease, Epoch: o.Epoch, Probes: probes, Announce: !o.Quiet}
}

// A LeaseResult is the result of one address of a batch, and Err the reason that it failed.
type LeaseResult struct {
	Lease
	Err error
}

// A RemovalResult is the result of one address of a batch, and Err the reason that it failed.
type RemovalResult struct {
	Removal
	Err error
}

// AddAddresses adds addresses; renew their leases in time. The results are in the order of the request; followers come after.
func (c *Client) AddAddresses(ctx context.Context, addresses []netip.Addr, options AddressOptions) ([]LeaseResult, error) {
	return c.leases(ctx, kindAddAddress, options.request(addresses), len(addresses))
}

// RenewAddresses restarts the leases of addresses, for their previous length if none is given.
func (c *Client) RenewAddresses(
	ctx context.Context, addresses []netip.Addr, lease *uint32, epoch uint64,
) ([]LeaseResult, error) {
	request := renewAddress{Addresses: addresses, Lease: lease, Epoch: epoch}
	return c.leases(ctx, kindRenewAddress, request, len(addresses))
}

// AnnounceAddresses announces addresses to the neighbours again.
func (c *Client) AnnounceAddresses(ctx context.Context, addresses []netip.Addr, epoch uint64) ([]LeaseResult, error) {
	return c.leases(ctx, kindAnnounce, removeAddress{addresses, epoch}, len(addresses))
}

// MoveAddresses moves addresses to another interface of this host and announces them there.
func (c *Client) MoveAddresses(
	ctx context.Context, addresses []netip.Addr, toInterface string, epoch uint64,
) ([]LeaseResult, error) {
	return c.leases(ctx, kindMoveAddress, moveAddress{addresses, toInterface, epoch, true}, len(addresses))
}

// RemoveAddresses removes addresses. The results are in the order of the request; followers come after.
func (c *Client) RemoveAddresses(ctx context.Context, addresses []netip.Addr, epoch uint64) ([]RemovalResult, error) {
	var reply removals
	if err := c.call(ctx, kindRemoveAddress, removeAddress{addresses, epoch}, &reply); err != nil {
		return nil, err
	}
	if len(reply.Results) < len(addresses) {
		return nil, c.violated(protocolError("%d addresses have %d results", len(addresses), len(reply.Results)))
	}
	results := make([]RemovalResult, len(reply.Results))
	for i, result := range reply.Results {
		if result.fault != nil {
			results[i].Err = result.fault
		} else {
			results[i].Removal = *result.done
		}
	}
	return results, nil
}

// ListAddresses returns one page of the addresses that the broker manages, from the first one after this address, or from the
// first of all if it is nil.
func (c *Client) ListAddresses(ctx context.Context, after *netip.Addr) (AddressPage, error) {
	var page AddressPage
	err := c.call(ctx, kindListAddresses, listAddresses{after}, &page)
	return page, err
}

func (c *Client) leases(ctx context.Context, kind uint16, request any, count int) ([]LeaseResult, error) {
	var reply leases
	if err := c.call(ctx, kind, request, &reply); err != nil {
		return nil, err
	}
	if len(reply.Results) < count {
		return nil, c.violated(protocolError("%d addresses have %d results", count, len(reply.Results)))
	}
	results := make([]LeaseResult, len(reply.Results))
	for i, result := range reply.Results {
		if result.fault != nil {
			results[i].Err = result.fault
		} else {
			results[i].Lease = *result.done
		}
	}
	return results, nil
}

// A HeldAddress is an address whose lease a goroutine renews.
//
// The owner learns of a loss before the lease ends at the broker, even if the broker hangs, because the end is counted from
// before each request was sent. Events can only make the report earlier.
type HeldAddress struct {
	client  *Client
	address netip.Addr
	options AddressOptions
	length  time.Duration
	queue   *queue

	release context.CancelFunc
	ended   chan struct{}
	lost    chan struct{}
	notice  chan time.Duration

	mutex sync.Mutex
	lease Lease
	err   error
}

// HoldAddress adds an address and renews its lease until it is removed or lost.
func (c *Client) HoldAddress(ctx context.Context, address netip.Addr, options AddressOptions) (*HeldAddress, error) {
	queue := newQueue()
	if c.allows("subscribe") {
		if _, err := c.subscribe(ctx, queue, false); err != nil {
			return nil, err
		}
	}
	requested := boottime()
	results, err := c.AddAddresses(ctx, []netip.Addr{address}, options)
	if err == nil {
		err = results[0].Err
	}
	if err != nil {
		c.forget(queue)
		return nil, err
	}
	held := &HeldAddress{
		client: c, address: address, options: options, queue: queue, lease: results[0].Lease,
		ended: make(chan struct{}), lost: make(chan struct{}), notice: make(chan time.Duration, 1),
	}
	held.length = longestLease
	if remaining := held.lease.RemainingMS; remaining < uint64(longestLease.Milliseconds()) {
		held.length = time.Duration(remaining) * time.Millisecond
	}
	if held.length < time.Second {
		held.length = time.Second
	}
	var released context.Context
	released, held.release = context.WithCancel(context.Background())
	go held.renewLoop(released, requested+held.length)
	return held, nil
}

// Lease returns the lease as the broker last confirmed it.
func (h *HeldAddress) Lease() Lease {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.lease
}

// Lost returns a channel that is closed when the address is lost. From then on this host must not use it.
func (h *HeldAddress) Lost() <-chan struct{} { return h.lost }

// Err returns the reason that the address is lost, and nil before.
func (h *HeldAddress) Err() error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.err
}

// RemovalNotice returns a channel with the time until the broker removes the address, when it gives notice. Only a peer that is
// allowed "events" gets it.
func (h *HeldAddress) RemovalNotice() <-chan time.Duration { return h.notice }

// Remove removes the address, and returns whether the broker verified that this host no longer has it.
func (h *HeldAddress) Remove(ctx context.Context) (bool, error) {
	h.LetExpire()
	results, err := h.client.RemoveAddresses(ctx, []netip.Addr{h.address}, h.options.Epoch)
	if err != nil {
		return false, err
	}
	return results[0].Verified, results[0].Err
}

// LetExpire stops renewing. The address stays until its lease ends.
func (h *HeldAddress) LetExpire() {
	h.release()
	<-h.ended
}

func (h *HeldAddress) renewLoop(released context.Context, end time.Duration) {
	defer close(h.ended)
	defer h.client.forget(h.queue)
	for {
		if !h.wait(released) {
			return
		}
		requested := boottime()
		ctx, cancel := context.WithTimeout(released, end-requested)
		results, err := h.client.RenewAddresses(ctx, []netip.Addr{h.address}, h.options.Lease, h.options.Epoch)
		cancel()
		switch {
		case released.Err() != nil:
			return
		case err == nil && results[0].Err == nil:
			end = requested + h.length
			h.mutex.Lock()
			h.lease = results[0].Lease
			h.mutex.Unlock()
			continue
		case err == nil:
			err = results[0].Err
		}
		if isTimeout(err) {
			err = &Fault{Code: Expired, Message: fmt.Sprintf("the lease of %s ended before the broker renewed it", h.address)}
		}
		// A temporary fault is retried while the lease lasts.
		if !isTemporary(err) || boottime() >= end {
			h.mutex.Lock()
			h.err = err
			h.mutex.Unlock()
			close(h.lost)
			return
		}
	}
}

// wait waits until the lease is due; false if the address was released.
func (h *HeldAddress) wait(released context.Context) bool {
	timer := time.NewTimer(h.length / renewalParts)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-h.client.done:
			return true // the renewal then fails with the reason
		case <-released.Done():
			return false
		case <-h.queue.arrived:
			if h.isDue() {
				return true
			}
		}
	}
}

// isDue handles events: each is about this address or is a gap, and a reason to renew now. It may be about an earlier lease.
func (h *HeldAddress) isDue() bool {
	due := false
	for {
		h.client.mutex.Lock()
		event, ok := h.queue.pop()
		h.client.mutex.Unlock()
		switch {
		case !ok:
			return due
		case event.Code == Gap:
			due = true
		case event.Address == nil || *event.Address != h.address:
		case event.Code == AddressLeaving:
			select {
			case h.notice <- time.Duration(event.Count) * time.Millisecond:
			default: // an earlier notice was not taken
			}
		case event.Code != AddressAdded && event.Code != AddressRestored && event.Code != AddressConflict:
			due = true
		}
	}
}

func isTemporary(err error) bool {
	fault, ok := err.(*Fault)
	return ok && (fault.Code == Busy || fault.Code == OS || fault.Code == NotLocal)
}

// boottime is the clock of leases, which also counts while the machine is suspended.
func boottime() time.Duration {
	var now syscall.Timespec
	// It cannot fail: Linux has this clock since 2.6.39.
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}
