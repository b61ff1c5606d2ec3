package portreeve

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// DefaultSocket is the path of the broker's control socket unless its configuration names another.
	DefaultSocket = "/run/portreeve/broker.sock"
	// ChannelVariable is the variable with the number of the worker's channel.
	ChannelVariable = "PORTREEVE_CHANNEL"

	// closeTimeout limits the stop of a listener by Close, which has no context.
	closeTimeout = 5 * time.Second
)

// A Client is a session with the broker. Goroutines can share it.
type Client struct {
	channel *channel
	welcome Welcome
	done    chan struct{}

	mutex       sync.Mutex
	lastRequest uint32
	// inFlight has the requests without a reply. A nil channel means that nobody waits for it.
	inFlight    map[uint32]chan *frame
	ended       error
	subscribers subscribers
}

// Open opens a session. The name identifies this program in the broker's logs. If the path is empty, the broker's worker uses
// its inherited channel, and another program the control socket in its usual place.
func Open(ctx context.Context, name, path string) (*Client, error) {
	value, isWorker := os.LookupEnv(ChannelVariable)
	connection := func() (*channel, error) {
		if path == "" && isWorker {
			conn, err := inherited(value)
			if err != nil {
				return nil, err
			}
			return newChannel(conn)
		}
		if path == "" {
			path = DefaultSocket
		}
		conn, err := connect(ctx, path)
		if err != nil {
			return nil, err
		}
		return newChannel(conn)
	}
	channel, err := connection()
	if err != nil {
		return nil, err
	}
	return open(ctx, name, channel)
}

func open(ctx context.Context, name string, channel *channel) (*Client, error) {
	client := &Client{channel: channel, done: make(chan struct{}), inFlight: map[uint32]chan *frame{}}
	go client.receive()
	if err := client.call(ctx, kindHello, hello{Client: name, Features: featureListenMode}, &client.welcome); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// Welcome returns the broker's reply to the opening: its identity, and the operations that this peer is allowed.
func (c *Client) Welcome() Welcome { return c.welcome }

// Done returns a channel that is closed when the session has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns the reason that the session has ended, and nil before.
func (c *Client) Err() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.ended
}

// Close ends the session. Listeners of the control socket stop; the broker retains those of its worker for a while.
func (c *Client) Close() error {
	c.end(ErrClosed)
	return nil
}

// Ping checks that the broker responds.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, kindPing, empty{}, &empty{})
}

// Stop stops up to 253 listeners by number.
func (c *Client) Stop(ctx context.Context, listeners ...uint64) (Stopped, error) {
	var stopped Stopped
	err := c.call(ctx, kindStop, stop{listeners}, &stopped)
	return stopped, err
}

// Status returns the broker's state, with the page of listeners that begins after this number.
func (c *Client) Status(ctx context.Context, after uint64) (Status, error) {
	var status Status
	err := c.call(ctx, kindStatus, statusRequest{after}, &status)
	return status, err
}

// Policy returns one page of the rules that apply to this peer, of the topology and of the floating addresses.
func (c *Client) Policy(ctx context.Context, after uint32) (PolicyPage, error) {
	var page PolicyPage
	err := c.call(ctx, kindPolicy, policyRequest{after}, &page)
	return page, err
}

// SetLimit sets a resource limit of this process, such as "nofile", and returns that in force. A limit that is nil stays.
func (c *Client) SetLimit(ctx context.Context, resource string, soft, hard *uint64) (Limit, error) {
	var limit Limit
	err := c.call(ctx, kindSetLimit, setLimit{resource, soft, hard}, &limit)
	return limit, err
}

// call sends a request and decodes its reply, which has no descriptors.
func (c *Client) call(ctx context.Context, kind uint16, request, reply any) error {
	received, err := c.request(ctx, kind, request)
	if err != nil {
		return err
	}
	defer received.close()
	if len(received.descriptors) > 0 {
		return c.violated(protocolError("a reply has %d unexpected descriptors", len(received.descriptors)))
	}
	if err := decode(received.body, reply); err != nil {
		return c.violated(err)
	}
	return nil
}

// request sends a request and waits for its reply, which is not a fault. The caller closes it.
func (c *Client) request(ctx context.Context, kind uint16, request any) (*frame, error) {
	body, err := encode(request)
	if err != nil {
		return nil, err
	}
	replied := make(chan *frame, 1)
	number, err := c.register(replied)
	if err != nil {
		return nil, err
	}
	if err := c.channel.send(ctx, encodeFrame(kind, number, body)); err != nil {
		c.withdraw(number, replied, false)
		return nil, err
	}
	var received *frame
	select {
	case received = <-replied:
	case <-c.done:
		select {
		case received = <-replied: // it arrived before the end
		default:
			return nil, c.Err()
		}
	case <-ctx.Done():
		c.withdraw(number, replied, true)
		return nil, ctx.Err()
	}
	switch {
	case received.descriptorsLost:
		received.close()
		return nil, ErrDescriptorsLost
	case received.kind == kind|kindReply:
		return received, nil
	}
	count := len(received.descriptors)
	received.close()
	if received.kind != kindFault || count > 0 {
		return nil, c.violated(protocolError("the reply to a request of kind %d has the kind %#04x and %d descriptors",
			kind, received.kind, count))
	}
	fault := new(Fault)
	if err := decode(received.body, fault); err != nil {
		return nil, c.violated(err)
	}
	return nil, fault
}

func (c *Client) register(replied chan *frame) (uint32, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.ended != nil {
		return 0, c.ended
	}
	for {
		c.lastRequest++
		if _, used := c.inFlight[c.lastRequest]; c.lastRequest != 0 && !used {
			break
		}
	}
	c.inFlight[c.lastRequest] = replied
	return c.lastRequest, nil
}

// withdraw records that nobody waits for the reply to a request. Its descriptors are closed when it arrives.
func (c *Client) withdraw(number uint32, replied chan *frame, isSent bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	select {
	case late := <-replied:
		late.close()
	default:
		if isSent {
			c.inFlight[number] = nil
		} else {
			delete(c.inFlight, number)
		}
	}
}

// violated ends the session because of the broker's mistake.
func (c *Client) violated(err error) error {
	c.end(err)
	return err
}

func (c *Client) end(why error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.ended == nil {
		c.ended = why
		close(c.done)
		c.channel.conn.Close()
	}
}

// receive receives all frames.
func (c *Client) receive() {
	for {
		received, err := c.channel.receive()
		if err == nil {
			err = c.deliver(received)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

func (c *Client) deliver(received *frame) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if received.request == 0 {
		defer received.close()
		return c.unrequested(received)
	}
	replied, known := c.inFlight[received.request]
	if !known {
		received.close()
		return protocolError("it sent a reply to request %d, which is not in flight", received.request)
	}
	delete(c.inFlight, received.request)
	if replied == nil {
		received.close()
	} else {
		replied <- received
	}
	return nil
}

func (c *Client) unrequested(received *frame) error {
	switch received.kind {
	case kindFault:
		fault := new(Fault)
		if err := decode(received.body, fault); err != nil {
			return err
		}
		return &endedError{fault}
	case kindEvent:
		var event Event
		if err := decode(received.body, &event); err != nil {
			return err
		}
		c.subscribers.deliver(event)
	}
	// A later broker may send other frames without a request.
	return nil
}

// allows tells whether policy allows this peer an operation.
func (c *Client) allows(operation string) bool {
	for _, name := range c.welcome.Operations {
		if name == operation {
			return true
		}
	}
	return false
}

// isTimeout tells whether a request had no reply in time.
func isTimeout(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
