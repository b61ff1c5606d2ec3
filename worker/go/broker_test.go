package portreeve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// withBroker opens a session with a real broker. The project's own tests start one for each of these tests.
func withBroker(t *testing.T) (context.Context, *Client) {
	t.Helper()
	path := os.Getenv("PORTREEVE_TEST_SOCKET")
	if path == "" {
		t.Skip("no broker: tests/run starts one")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	client, err := Open(ctx, "go test", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return ctx, client
}

func greetOnce(t *testing.T, listener net.Listener, network, address string) {
	t.Helper()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			fmt.Fprint(conn, "220 ready\r\n")
			conn.Close()
		}
	}()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if greeting, err := io.ReadAll(conn); err != nil || string(greeting) != "220 ready\r\n" {
		t.Fatalf("%q %v", greeting, err)
	}
}

func TestBrokerListenersOfEveryKindServeAndStop(t *testing.T) {
	ctx, client := withBroker(t)
	if err := client.Ping(ctx); err != nil || client.Welcome().Peer != "user 65534" {
		t.Fatal(err, client.Welcome())
	}
	open := &ListenOptions{Mode: pointer(uint32(0o666))}
	for _, one := range []struct {
		endpoint, network, address string
		options                    *ListenOptions
	}{
		{"*:25", "tcp", "127.0.0.1:25", nil},
		{"*:465", "tcp", "127.0.0.1:465", &ListenOptions{Backlog: pointer(uint32(7)), NoDelay: pointer(true)}},
		{"[::1]:25", "tcp", "[::1]:25", nil},
		{"/run/host/mail.sock", "unix", "/run/host/mail.sock", open},
		{"seqpacket:/run/host/mail.seq", "unixpacket", "/run/host/mail.seq", open},
	} {
		listener, err := client.Listen(ctx, one.endpoint, one.options)
		if err != nil {
			t.Fatal(err)
		}
		if listener.Endpoint().String() != one.endpoint || listener.ID() == 0 {
			t.Error(listener.Endpoint(), listener.ID())
		}
		greetOnce(t, listener, one.network, one.address)
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		if err := listener.Close(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := net.Dial(one.network, one.address); err == nil {
			t.Errorf("%s serves after its stop", one.endpoint)
		}
	}
	packets, err := client.ListenPacket(ctx, "*:53/udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := net.Dial("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	fmt.Fprint(guest, "query")
	buffer := make([]byte, 9)
	if count, _, err := packets.ReadFrom(buffer); err != nil || string(buffer[:count]) != "query" {
		t.Fatal(string(buffer[:count]), err)
	}
	if err := packets.Close(); err != nil {
		t.Error(err)
	}
}

func TestBrokerRefusalsHaveTheirCode(t *testing.T) {
	ctx, client := withBroker(t)
	_, err := client.Listen(ctx, "*:26", nil)
	var fault *Fault
	if !errors.Is(err, Denied) || !errors.As(err, &fault) || !strings.Contains(err.Error(), "is not allowed to listen on *:26") {
		t.Fatal(err)
	}
	if _, err := client.ListenPacket(ctx, "*:25", nil); err == nil || !strings.Contains(err.Error(), "use Listen for TCP") {
		t.Error(err)
	}
	requests := []ListenRequest{{Endpoint: mustParse(t, "*:25")}, {Endpoint: mustParse(t, "*:26")}, {Endpoint: mustParse(t, "*:53/udp")}}
	results, err := client.ListenMany(ctx, requests, false)
	if err != nil || results[0].Err != nil || !errors.Is(results[1].Err, Denied) || results[2].PacketConn == nil {
		t.Fatal(results, err)
	}
	status, err := client.Status(ctx, 0)
	if err != nil || len(status.Listeners) != 2 {
		t.Error(status, err)
	}
	policy, err := client.Policy(ctx, 0)
	if err != nil || len(policy.Rules) == 0 {
		t.Error(policy, err)
	}
	stopped, err := client.Stop(ctx, results[0].Listener.ID(), 99)
	if err != nil || len(stopped.Unknown) != 1 || stopped.Unknown[0] != 99 {
		t.Error(stopped, err)
	}
	// The endpoint has the other descriptor still open, but its listener is another one from now on.
	again, err := client.Listen(ctx, "*:25", nil)
	if err != nil || again.ID() == results[0].Listener.ID() {
		t.Fatal(again, err)
	}
	results[0].Listener.Detach().Close()
	greetOnce(t, again, "tcp", "127.0.0.1:25")
	again.Close()
	results[2].PacketConn.Close()
	results, err = client.ListenMany(ctx, requests, true)
	if err != nil || results[0].Err == nil || !errors.Is(results[1].Err, Denied) || results[2].Err == nil {
		t.Error(results, err)
	}
}

func TestBrokerSessionIsSharedByGoroutines(t *testing.T) {
	ctx, client := withBroker(t)
	var group sync.WaitGroup
	for _, endpoint := range []string{"*:25", "*:465", "*:587", "[::1]:25"} {
		group.Add(1)
		go func(endpoint string) {
			defer group.Done()
			for i := 0; i < 100; i++ {
				listener, err := client.Listen(ctx, endpoint, nil)
				if err != nil {
					t.Error(err)
					return
				}
				port := fmt.Sprint(":", listener.Addr().(*net.TCPAddr).Port)
				if !strings.HasSuffix(endpoint, port) {
					t.Errorf("%s has the socket of %s", endpoint, port)
				}
				// A request that is given up disturbs no other.
				cancelled, cancel := context.WithCancel(ctx)
				go cancel()
				if err := client.Ping(cancelled); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if err := listener.Close(); err != nil {
					t.Error(err)
				}
			}
		}(endpoint)
	}
	group.Wait()
}

func TestBrokerEndIsReportedAndLeavesTheSockets(t *testing.T) {
	ctx, client := withBroker(t)
	listener, err := client.Listen(ctx, "*:25", nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	<-client.Done()
	if err := client.Ping(ctx); !errors.Is(err, ErrClosed) || !errors.Is(client.Err(), ErrClosed) {
		t.Error(err)
	}
	greetOnce(t, listener, "tcp", "127.0.0.1:25")
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
}

func TestBrokerLeaseIsRenewedUntilItIsRemovedOrLost(t *testing.T) {
	ctx, client := withBroker(t)
	events, err := client.Subscribe(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.1.1.7")
	options := AddressOptions{Lease: pointer(uint32(6)), NoProbes: true}
	held, err := client.HoldAddress(ctx, address, options)
	if err != nil {
		t.Fatal(err)
	}
	if event, err := events.Next(ctx); err != nil || event.Code != AddressAdded || *event.Address != address {
		t.Error(event, err)
	}
	// It stays for longer than its lease.
	select {
	case <-held.Lost():
		t.Fatal(held.Err())
	case <-time.After(7 * time.Second):
	}
	page, err := client.ListAddresses(ctx, nil)
	if err != nil || len(page.Addresses) != 1 || page.Addresses[0].Lease.Address != address || !page.Addresses[0].Present {
		t.Fatal(page, err)
	}
	if lease := held.Lease(); lease.Interface != "eth1" || lease.RemainingMS > 6000 {
		t.Error(lease)
	}
	if verified, err := held.Remove(ctx); err != nil || !verified {
		t.Error(verified, err)
	}
	if _, err := client.RenewAddresses(ctx, []netip.Addr{address}, nil, 0); err != nil {
		t.Error(err) // the fault is that of the address
	}

	held, err = client.HoldAddress(ctx, address, options)
	if err != nil {
		t.Fatal(err)
	}
	results, err := client.RemoveAddresses(ctx, []netip.Addr{address}, 0)
	if err != nil || results[0].Err != nil {
		t.Fatal(results, err)
	}
	<-held.Lost()
	if !errors.Is(held.Err(), NotFound) {
		t.Error(held.Err())
	}
	if _, err := client.HoldAddress(ctx, netip.MustParseAddr("192.0.2.1"), options); !errors.Is(err, Denied) {
		t.Error(err)
	}

	held, err = client.HoldAddress(ctx, address, options)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	<-held.Lost() // the broker is suspended: the loss is reported before the lease ends
	if !errors.Is(held.Err(), Expired) {
		t.Error(held.Err())
	}
	fmt.Println("lost")
	held.LetExpire()
	if err := events.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestBrokerWithoutASocketIsNamed(t *testing.T) {
	if os.Getenv("PORTREEVE_TEST_SOCKET") == "" {
		t.Skip("no broker: tests/run starts one")
	}
	_, err := Open(context.Background(), "go test", "/run/host/nothing")
	if !errors.Is(err, syscall.ENOENT) || !strings.HasPrefix(err.Error(), "cannot connect to the broker at /run/host/nothing: ") ||
		!strings.HasSuffix(err.Error(), ". Start portreeved, or name the control socket of its configuration") {
		t.Error(err)
	}
}

func TestBrokerListenerThatIsNotKeptEndsWithItsSocket(t *testing.T) {
	ctx, client := withBroker(t)
	unkept := &ListenOptions{Unkept: true}
	listener, err := client.Listen(ctx, "*:25", unkept)
	if errors.Is(err, Unsupported) {
		fmt.Println("unsupported")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Listen(ctx, "*:25", unkept); !errors.Is(err, InUse) {
		t.Error(err)
	}
	if err := listener.Detach().Close(); err != nil {
		t.Error(err)
	}
	requests := []ListenRequest{{mustParse(t, "*:25"), *unkept}, {Endpoint: mustParse(t, "*:26")}}
	if _, err := client.ListenMany(ctx, requests, false); err == nil || !strings.Contains(err.Error(), "some of its listeners are kept") {
		t.Error(err)
	}
	results, err := client.ListenMany(ctx, requests[:1], false)
	if err != nil || results[0].Err != nil {
		t.Fatal(results, err)
	}
	results[0].Listener.Detach().Close()
	if status, err := client.Status(ctx, 0); err != nil || len(status.Listeners) != 0 {
		t.Error(status, err)
	}
	fmt.Println("ended")
}
