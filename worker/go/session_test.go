package portreeve

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const replyListen = kindListen | kindReply

// A fakeBroker is the broker's end of a channel, which does also what no broker should.
type fakeBroker struct {
	t    *testing.T
	conn *net.UnixConn
}

// begin opens a session whose broker is then played by act.
func begin(t *testing.T, act func(*fakeBroker)) (context.Context, *Client) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]*net.UnixConn{}
	for i, descriptor := range pair {
		file := os.NewFile(uintptr(descriptor), "channel")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
	}
	broker := &fakeBroker{t, ends[0]}
	played := make(chan struct{})
	go func() {
		defer close(played)
		number := broker.receive()
		broker.send(encodeFrame(kindHello|kindReply, number, broker.encode(Welcome{Peer: "user 8", Operations: []string{"hello"}})))
		act(broker)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(func() {
		cancel()
		<-played
		broker.conn.Close()
	})
	channel, err := newChannel(ends[1])
	if err != nil {
		t.Fatal(err)
	}
	client, err := open(ctx, "go test", channel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return ctx, client
}

func (b *fakeBroker) encode(message any) []byte {
	body, err := encode(message)
	if err != nil {
		b.t.Error(err)
	}
	return body
}

// receive returns the number of the next request; 0 at the end of the session.
func (b *fakeBroker) receive() uint32 {
	packet := make([]byte, maxFrame)
	count, err := b.conn.Read(packet)
	if err != nil || count < headerSize {
		return 0
	}
	return binary.LittleEndian.Uint32(packet[8:])
}

func (b *fakeBroker) send(packet []byte, descriptors ...int) {
	var control []byte
	if len(descriptors) > 0 {
		control = syscall.UnixRights(descriptors...)
	}
	if _, _, err := b.conn.WriteMsgUnix(packet, control, nil); err != nil {
		b.t.Error(err)
	}
}

func withCount(packet []byte, count byte) []byte {
	packet[14] = count
	return packet
}

// descriptors returns the number of open descriptors. The poller of the runtime has its own, so it is used once before.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// made returns a listener and a descriptor of it.
func made(t *testing.T) (net.Listener, int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); listener.Close() })
	return listener, int(file.Fd())
}

func TestAListenerHasTheSocketOfItsReply(t *testing.T) {
	original, descriptor := made(t)
	ctx, client := begin(t, func(b *fakeBroker) {
		b.send(withCount(encodeFrame(replyListen, b.receive(), b.encode(listening{7})), 1), descriptor)
		b.send(encodeFrame(kindStop|kindReply, b.receive(), b.encode(Stopped{})))
	})
	listener, err := client.Listen(ctx, "*:25", nil)
	if err != nil {
		t.Fatal(err)
	}
	if listener.ID() != 7 || listener.Addr().String() != original.Addr().String() {
		t.Error(listener.ID(), listener.Addr())
	}
	raw, err := listener.Listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(descriptor uintptr) {
		flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, descriptor, syscall.F_GETFD, 0)
		if flags&syscall.FD_CLOEXEC == 0 {
			t.Error("the socket is not close-on-exec")
		}
	})
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatDoesNotBelongToAReplyEndsTheSession(t *testing.T) {
	_, descriptor := made(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := make([]int, 253)
	for i := range many {
		many[i] = descriptor
	}
	body := []byte{7, 0, 0, 0, 0, 0, 0, 0}
	reply := func(declared byte) func(uint32) []byte {
		return func(number uint32) []byte { return withCount(encodeFrame(replyListen, number, body), declared) }
	}
	changed := func(at int, value byte) func(uint32) []byte {
		return func(number uint32) []byte {
			packet := encodeFrame(replyListen, number, body)
			packet[at] = value
			return packet
		}
	}
	for name, one := range map[string]struct {
		packet func(uint32) []byte
		many   []int
		why    string
	}{
		"missing":       {reply(1), nil, "declares 1 descriptors and 0 were received"},
		"undeclared":    {reply(0), many[:1], "declares 0 descriptors and 1 were received"},
		"surplus":       {reply(1), many[:2], "declares 1 descriptors and 2 were received"},
		"too many":      {reply(254), many, "declares 254 descriptors and 253 were received"},
		"none":          {reply(0), nil, "a listener has 0 descriptors"},
		"two":           {reply(2), many[:2], "a listener has 2 descriptors"},
		"253":           {reply(253), many, "a listener has 253 descriptors"},
		"no socket":     {reply(1), []int{int(null.Fd())}, "is another kind of file"},
		"magic":         {changed(0, 'X'), nil, "is not a frame"},
		"version":       {changed(4, 2), nil, "it speaks version 2"},
		"length":        {changed(12, 9), nil, "does not agree with its length"},
		"reserved":      {changed(15, 1), nil, "does not agree with its length"},
		"kind":          {changed(6, 2), nil, "has the kind 0x8002"},
		"other request": {changed(8, 99), nil, "which is not in flight"},
		"short":         {func(uint32) []byte { return []byte("PRTV") }, nil, "is not a frame"},
		"long":          {func(uint32) []byte { return make([]byte, maxFrame+1) }, nil, "longer than 65536 bytes"},
		"fault":         {func(n uint32) []byte { return encodeFrame(kindFault, n, []byte{0}) }, nil, "ends within a value"},
		"last fault":    {func(n uint32) []byte { return encodeFrame(kindFault, 0, []byte{0}) }, nil, "ends within a value"},
		"event":         {func(n uint32) []byte { return encodeFrame(kindEvent, 0, []byte{0}) }, nil, "ends within a value"},
		"fault with a descriptor": {func(n uint32) []byte {
			return withCount(encodeFrame(kindFault, n, make([]byte, 30)), 1)
		}, many[:1], "has the kind 0xffff"},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			t.Cleanup(func() {
				if after := descriptors(t); after != before {
					t.Errorf("%d descriptors instead of %d", after, before)
				}
			})
			ctx, client := begin(t, func(b *fakeBroker) { b.send(one.packet(b.receive()), one.many...) })
			_, err := client.Listen(ctx, "*:25", nil)
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), one.why) {
				t.Error(err)
			}
			if name == "no socket" {
				return // the session continues
			}
			if err := client.Ping(ctx); !errors.Is(err, ErrProtocol) {
				t.Error(err)
			}
		})
	}
}

func TestTheReasonOfTheEndIsReported(t *testing.T) {
	ctx, client := begin(t, func(b *fakeBroker) {
		b.receive()
		b.send(encodeFrame(kindFault, 0, b.encode(Fault{Code: QuotaExhausted, Message: "too many sessions"})))
	})
	if err := client.Ping(ctx); !errors.Is(err, ErrClosed) || !errors.Is(err, QuotaExhausted) ||
		err.Error() != "the broker ended the session: too many sessions" {
		t.Error(err)
	}
	<-client.Done()
}

func TestALateReplyIsClosedAndDisturbsNothing(t *testing.T) {
	_, descriptor := made(t)
	cancelled := make(chan struct{})
	before := 0
	ctx, client := begin(t, func(b *fakeBroker) {
		number := b.receive()
		<-cancelled
		b.send(withCount(encodeFrame(replyListen, number, b.encode(listening{7})), 1), descriptor)
		b.send(encodeFrame(kindPing|kindReply, b.receive(), nil))
	})
	before = descriptors(t)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := client.Listen(short, "*:25", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(cancelled)
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors instead of %d", after, before)
	}
}

func TestAProcessWithoutFreeDescriptorsCanRepeatTheRequest(t *testing.T) {
	_, descriptor := made(t)
	ctx, client := begin(t, func(b *fakeBroker) {
		for i := 0; i < 2; i++ {
			b.send(withCount(encodeFrame(replyListen, b.receive(), b.encode(listening{7})), 1), descriptor)
		}
	})
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// No number is free below the limit.
	low := limit
	low.Cur = 3
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, err := client.Listen(ctx, "*:25", nil)
	if restoreErr := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); restoreErr != nil {
		t.Fatal(restoreErr)
	}
	if !errors.Is(err, ErrDescriptorsLost) {
		t.Fatal(err)
	}
	listener, err := client.Listen(ctx, "*:25", nil)
	if err != nil {
		t.Fatal(err)
	}
	listener.Detach().Close()
}

func TestEventsOfAProgramThatTakesNoneAreBounded(t *testing.T) {
	const count = 5000
	first := Event{Number: 1, Code: LinkDown}
	ctx, client := begin(t, func(b *fakeBroker) {
		b.send(encodeFrame(kindSubscribe|kindReply, b.receive(), b.encode(subscribed{Recent: []Event{first}})))
		b.send(encodeFrame(kindEvent, 0, b.encode(first))) // it is in the reply
		number := b.receive()
		event := encodeFrame(kindEvent, 0, b.encode(Event{Code: LinkUp}))
		for i := 0; i < count; i++ {
			b.send(event)
		}
		b.send(encodeFrame(kindPing|kindReply, number, nil))
	})
	events, err := client.Subscribe(ctx, false)
	if err != nil || len(events.Recent) != 1 {
		t.Fatal(events, err)
	}
	if err := client.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < maxQueuedEvents; i++ {
		if event, err := events.Next(ctx); err != nil || event.Code != LinkUp {
			t.Fatal(i, event, err)
		}
	}
	if event, err := events.Next(ctx); err != nil || event.Code != Gap || event.Count != count-maxQueuedEvents {
		t.Error(event, err)
	}
	client.Close()
	if _, err := events.Next(ctx); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestAFullChannelDelaysRequestsUntilTheirContextEnds(t *testing.T) {
	proceed := make(chan struct{})
	ctx, client := begin(t, func(b *fakeBroker) {
		<-proceed
		for number := b.receive(); number != 0; number = b.receive() {
			b.send(encodeFrame(kindPing|kindReply, number, nil))
		}
	})
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	const count = 2000
	results := make(chan error, count)
	for i := 0; i < count; i++ {
		go func() { results <- client.Ping(short) }()
	}
	for i := 0; i < count; i++ {
		if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	close(proceed)
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
	client.Close()
}

func TestAnInheritedDescriptorIsTakenOnce(t *testing.T) {
	_, descriptor := made(t) // close-on-exec, as everything that Go opens
	for _, value := range []string{strconv.Itoa(descriptor), "0", "9999", "x"} {
		if _, err := inherited(value); err == nil {
			t.Errorf("%s is taken", value)
		}
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0) // as if it were inherited
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[1])
	conn, err := inherited(strconv.Itoa(pair[0]))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	stream, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(stream[1])
	if _, err := inherited(strconv.Itoa(stream[0])); err == nil || !strings.Contains(err.Error(), "not a sequenced-packet") {
		t.Error(err)
	}
}

func TestAReceivedDescriptorIsCloseOnExecFromTheStart(t *testing.T) {
	_, descriptor := made(t)
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[1])
	conn, err := inherited(strconv.Itoa(pair[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	channel, err := newChannel(conn)
	if err != nil {
		t.Fatal(err)
	}
	packet := withCount(encodeFrame(replyListen, 1, make([]byte, 8)), 1)
	if err := syscall.Sendmsg(pair[1], packet, syscall.UnixRights(descriptor), nil, 0); err != nil {
		t.Fatal(err)
	}
	received, err := channel.receive()
	if err != nil || len(received.descriptors) != 1 {
		t.Fatal(received, err)
	}
	defer received.close()
	flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, uintptr(received.descriptors[0]), syscall.F_GETFD, 0)
	if flags&syscall.FD_CLOEXEC == 0 {
		t.Error("the descriptor is not close-on-exec")
	}
}
