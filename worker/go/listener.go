package portreeve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// unixBacklog is the length of the accept queue of a Unix socket for which none is requested. net.core.somaxconn limits it.
const unixBacklog = 500

// A registration is a listener at the broker.
type registration struct {
	client   *Client
	id       uint64
	endpoint Endpoint
	once     sync.Once
}

// ID returns the listener's number in the broker.
func (r *registration) ID() uint64 { return r.id }

// Endpoint returns what the listener is bound to.
func (r *registration) Endpoint() Endpoint { return r.endpoint }

// stop stops the listener, once. The end of the session has stopped it already.
func (r *registration) stop(ctx context.Context) (err error) {
	r.once.Do(func() {
		if _, err = r.client.Stop(ctx, r.id); errors.Is(err, ErrClosed) {
			err = nil
		}
	})
	return err
}

func (r *registration) stopInTime() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return r.stop(ctx)
}

// A Listener is a TCP or Unix listener. Close stops it, for every process that has its socket.
type Listener struct {
	net.Listener
	*registration
}

// Stop stops the listener at the broker and closes the socket.
func (l *Listener) Stop(ctx context.Context) error {
	err := l.Listener.Close()
	return firstError(l.stop(ctx), err)
}

// Close is Stop with a time limit.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	return firstError(l.stopInTime(), err)
}

// Detach returns the socket. The listener stays open until the session ends; the broker retains that of a worker.
func (l *Listener) Detach() net.Listener {
	l.once.Do(func() {})
	return l.Listener
}

// A PacketConn is a UDP listener. Close stops it, for every process that has its socket.
type PacketConn struct {
	net.PacketConn
	*registration
}

// Stop stops the listener at the broker and closes the socket.
func (p *PacketConn) Stop(ctx context.Context) error {
	err := p.PacketConn.Close()
	return firstError(p.stop(ctx), err)
}

// Close is Stop with a time limit.
func (p *PacketConn) Close() error {
	err := p.PacketConn.Close()
	return firstError(p.stopInTime(), err)
}

// Detach returns the socket. The listener stays open until the session ends; the broker retains that of a worker.
func (p *PacketConn) Detach() net.PacketConn {
	p.once.Do(func() {})
	return p.PacketConn
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// A ListenResult is the result of one listener of a batch: one of the three is set.
type ListenResult struct {
	Listener   *Listener
	PacketConn *PacketConn
	Err        error
}

// Listen requests a TCP or Unix listener, such as "*:25". A repeated request for the same endpoint returns the same socket.
// Without options, those of the broker's configuration apply.
func (c *Client) Listen(ctx context.Context, endpoint string, options *ListenOptions) (*Listener, error) {
	result, err := c.listen(ctx, endpoint, options, func(e Endpoint) bool { return e.Transport != UDP })
	return result.Listener, err
}

// ListenPacket requests a UDP listener, such as "*:53/udp", as Listen does.
func (c *Client) ListenPacket(ctx context.Context, endpoint string, options *ListenOptions) (*PacketConn, error) {
	result, err := c.listen(ctx, endpoint, options, func(e Endpoint) bool { return e.Transport == UDP })
	return result.PacketConn, err
}

func (c *Client) listen(
	ctx context.Context, text string, options *ListenOptions, fits func(Endpoint) bool,
) (result ListenResult, err error) {
	endpoint, err := ParseEndpoint(text)
	if err != nil {
		return result, fmt.Errorf("cannot listen: %w", err)
	}
	if !fits(endpoint) {
		return result, fmt.Errorf("cannot listen on %s: use Listen for TCP and Unix sockets, and ListenPacket for UDP", endpoint)
	}
	request := ListenRequest{Endpoint: endpoint}
	if options != nil {
		request.Options = *options
	}
	mode, err := c.listenMode([]ListenRequest{request})
	if err != nil {
		return result, err
	}
	reply, err := c.request(ctx, kindListen, listen{request, mode})
	if err != nil {
		return result, err
	}
	defer reply.close()
	var opened listening
	if err := decode(reply.body, &opened); err != nil {
		return result, c.violated(err)
	}
	if len(reply.descriptors) != 1 {
		return result, c.violated(protocolError("a listener has %d descriptors", len(reply.descriptors)))
	}
	return c.adopt(request, opened.ID, reply)
}

// ListenMany requests up to 253 listeners in one round trip. With allOrNothing, one failure makes all of them fail.
func (c *Client) ListenMany(ctx context.Context, requests []ListenRequest, allOrNothing bool) ([]ListenResult, error) {
	mode, err := c.listenMode(requests)
	if err != nil {
		return nil, err
	}
	reply, err := c.request(ctx, kindListenMany, listenMany{allOrNothing, requests, mode})
	if err != nil {
		return nil, err
	}
	defer reply.close()
	var many listeningMany
	if err := decode(reply.body, &many); err != nil {
		return nil, c.violated(err)
	}
	opened := 0
	for _, result := range many.Results {
		if result.done != nil {
			opened++
		}
	}
	if len(many.Results) != len(requests) || opened != len(reply.descriptors) {
		return nil, c.violated(protocolError("%d listeners have %d results and %d descriptors",
			len(requests), len(many.Results), len(reply.descriptors)))
	}
	results := make([]ListenResult, len(requests))
	for i, result := range many.Results {
		if result.fault != nil {
			results[i].Err = result.fault
			continue
		}
		adopted, err := c.adopt(requests[i], result.done.ID, reply)
		if err != nil {
			adopted.Err = err
		}
		results[i] = adopted
	}
	return results, nil
}

// listenMode returns the mode of a request, nil for the default one.
func (c *Client) listenMode(requests []ListenRequest) (*listenMode, error) {
	unkept := 0
	for _, request := range requests {
		if request.Options.Unkept {
			unkept++
		}
	}
	switch {
	case unkept == 0:
		return nil, nil
	case unkept < len(requests):
		return nil, errors.New("cannot send the request: some of its listeners are kept and others are not; send one request for " +
			"each kind")
	case c.welcome.Features&featureListenMode == 0:
		return nil, errors.New("cannot send the request: the broker is of an earlier release and keeps a copy of every listener")
	}
	return &listenMode{Kept: false}, nil
}

// adopt makes a listener of the next descriptor of a reply.
func (c *Client) adopt(request ListenRequest, id uint64, reply *frame) (result ListenResult, err error) {
	file := os.NewFile(uintptr(reply.descriptors[0]), request.Endpoint.String())
	reply.descriptors = reply.descriptors[1:]
	defer file.Close() // FileListener and FilePacketConn make a copy
	if err := prepare(file, request); err != nil {
		return result, err
	}
	registered := &registration{client: c, id: id, endpoint: request.Endpoint}
	if request.Endpoint.Transport == UDP {
		conn, err := net.FilePacketConn(file)
		if err != nil {
			return result, fmt.Errorf("cannot use the socket for %s: %w", request.Endpoint, err)
		}
		result.PacketConn = &PacketConn{conn, registered}
		return result, nil
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return result, fmt.Errorf("cannot use the socket for %s: %w", request.Endpoint, err)
	}
	result.Listener = &Listener{listener, registered}
	return result, nil
}

// prepare checks the kind of a socket, and makes a Unix socket listen: the broker leaves that to its peer, because clients see the
// credentials of the process that calls it.
func prepare(file *os.File, request ListenRequest) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(descriptor uintptr) {
		family, kind := socketKind(request.Endpoint)
		foundFamily, familyErr := syscall.GetsockoptInt(int(descriptor), syscall.SOL_SOCKET, syscall.SO_DOMAIN)
		foundKind, kindErr := syscall.GetsockoptInt(int(descriptor), syscall.SOL_SOCKET, syscall.SO_TYPE)
		if familyErr != nil || kindErr != nil || foundFamily != family || foundKind != kind {
			err = protocolError("the descriptor for %s is another kind of file", request.Endpoint)
			return
		}
		if family == syscall.AF_UNIX {
			backlog := unixBacklog
			if requested := request.Options.Backlog; requested != nil && *requested < 1<<31 {
				backlog = int(*requested)
			}
			if err = syscall.Listen(int(descriptor), backlog); err != nil {
				err = fmt.Errorf("cannot listen on %s: %w", request.Endpoint, err)
			}
		}
	})
	return firstError(err, controlErr)
}

// socketKind returns the family and the type of an endpoint's socket.
func socketKind(endpoint Endpoint) (family, kind int) {
	switch endpoint.Transport {
	case UnixStream:
		return syscall.AF_UNIX, syscall.SOCK_STREAM
	case UnixSeqpacket:
		return syscall.AF_UNIX, syscall.SOCK_SEQPACKET
	case UDP:
		kind = syscall.SOCK_DGRAM
	default:
		kind = syscall.SOCK_STREAM
	}
	if endpoint.Address.Is4() {
		return syscall.AF_INET, kind
	}
	return syscall.AF_INET6, kind
}
