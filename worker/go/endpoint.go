package portreeve

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

const (
	maxPath      = 107
	maxInterface = 15
)

// A Transport is the kind of a listener's socket.
type Transport uint32

// The transports.
const (
	TCP Transport = iota
	UDP
	UnixStream
	UnixSeqpacket
)

// An Endpoint is what a listener is bound to. [ParseEndpoint] reads the notation of the configuration.
type Endpoint struct {
	Transport Transport
	// Address is the address of a TCP or UDP socket; the unspecified address means all addresses.
	Address netip.Addr
	Port    uint16
	// Scope is the interface of a link-local IPv6 address.
	Scope string
	// Path is the absolute path of a Unix socket.
	Path string
}

// ParseEndpoint parses the notation of the configuration:
//
//	*:25  :25                   TCP, all IPv4 addresses
//	192.0.2.1:25                TCP, one IPv4 address
//	[*]:25  [::]:25             TCP, all IPv6 addresses
//	[2001:db8::1]:25            TCP, one IPv6 address
//	[fe80::1%eth0]:25           TCP, a link-local IPv6 address on an interface
//	any of these with /udp      UDP
//	/run/mail.sock              Unix stream socket
//	seqpacket:/run/mail.sock    Unix sequenced-packet socket
func ParseEndpoint(text string) (Endpoint, error) {
	if path := strings.TrimPrefix(text, "seqpacket:"); path != text {
		return parsePath(UnixSeqpacket, path)
	}
	if strings.HasPrefix(text, "/") {
		return parsePath(UnixStream, text)
	}
	inet, transport, found := strings.Cut(text, "/")
	switch {
	case !found || transport == "tcp":
		return parseInet(TCP, inet)
	case transport == "udp":
		return parseInet(UDP, inet)
	}
	return Endpoint{}, fmt.Errorf("%q is not a transport: write tcp or udp", transport)
}

func parsePath(transport Transport, path string) (Endpoint, error) {
	if len(path) > maxPath {
		return Endpoint{}, fmt.Errorf("the path has %d bytes, and the path of a Unix socket has at most %d", len(path), maxPath)
	}
	return Endpoint{Transport: transport, Path: path}, nil
}

var (
	portPattern  = regexp.MustCompile(`^[0-9]+$`)
	scopePattern = regexp.MustCompile(`^[!-.0-~]{1,15}$`)
)

func parseInet(transport Transport, text string) (Endpoint, error) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return Endpoint{}, fmt.Errorf("the port or the address is missing in %q: write ADDRESS:PORT, [IPV6]:PORT or *:PORT", text)
	}
	host, portText := text[:colon], text[colon+1:]
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || !portPattern.MatchString(portText) {
		return Endpoint{}, fmt.Errorf("the port %q is not a number from 1 to 65535", portText)
	}
	endpoint := Endpoint{Transport: transport, Port: uint16(port)}
	if !strings.HasPrefix(host, "[") || !strings.HasSuffix(host, "]") || len(host) < 2 {
		if host == "" || host == "*" {
			host = "0.0.0.0"
		}
		endpoint.Address, err = netip.ParseAddr(host)
		if err != nil || !endpoint.Address.Is4() {
			return Endpoint{}, fmt.Errorf("%q is not an IPv4 address: write an IPv6 address in brackets, [2001:db8::1]:25, and "+
				"an address instead of a host name", host)
		}
		return endpoint, nil
	}
	inner, scope, scoped := strings.Cut(host[1:len(host)-1], "%")
	if inner == "*" {
		inner = "::"
	}
	endpoint.Address, err = netip.ParseAddr(inner)
	if err != nil || !endpoint.Address.Is6() {
		return Endpoint{}, fmt.Errorf("%q in brackets is not an IPv6 address", inner)
	}
	if scoped && !scopePattern.MatchString(scope) {
		return Endpoint{}, fmt.Errorf("%q is not an interface name of at most %d characters", scope, maxInterface)
	}
	endpoint.Scope = scope
	return endpoint, nil
}

// String returns the notation of the configuration.
func (e Endpoint) String() string {
	switch e.Transport {
	case UnixStream:
		return e.Path
	case UnixSeqpacket:
		return "seqpacket:" + e.Path
	}
	address := e.Address.String()
	if e.Scope != "" {
		address += "%" + e.Scope
	}
	switch {
	case e.Address.Is6():
		address = "[" + address + "]"
	case e.Address == netip.IPv4Unspecified():
		address = "*"
	}
	address += ":" + strconv.Itoa(int(e.Port))
	if e.Transport == UDP {
		address += "/udp"
	}
	return address
}

func (e *Endpoint) isUnix() bool { return e.Transport == UnixStream || e.Transport == UnixSeqpacket }

func (e *Endpoint) put(out *encoder) {
	out.number(4, uint64(e.Transport))
	if e.isUnix() {
		out.text(e.Path, maxPath, "the path")
		return
	}
	out.address(e.Address)
	out.number(2, uint64(e.Port))
	out.text(e.Scope, maxInterface, "the interface name")
}

func (e *Endpoint) get(in *decoder) {
	e.Transport = Transport(in.number(4))
	switch e.Transport {
	case TCP, UDP:
		e.Address = in.address()
		e.Port = uint16(in.number(2))
		e.Scope = in.text(maxInterface)
	case UnixStream, UnixSeqpacket:
		e.Path = in.text(maxPath)
	default:
		in.fail("an endpoint has the unknown tag %d", e.Transport)
	}
}
