// Greeter greets every connection on a privileged port: greeter [ENDPOINT [CONTROL_SOCKET]]
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"portreeve"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "greeter:", err)
		os.Exit(1)
	}
}

func argument(number int, otherwise string) string {
	if len(os.Args) > number {
		return os.Args[number]
	}
	return otherwise
}

func serve() error {
	terminated, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ctx, cancel := context.WithTimeout(terminated, 10*time.Second)
	defer cancel()
	client, err := portreeve.Open(ctx, "greeter", argument(2, ""))
	if err != nil {
		return err
	}
	defer client.Close()
	listener, err := client.Listen(ctx, argument(1, "*:25"), nil)
	if errors.Is(err, portreeve.Denied) {
		return fmt.Errorf("ask root for a permit: %w", err)
	}
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Endpoint())
	go func() {
		<-terminated.Done()
		listener.Close() // stops the listener, and ends Accept
	}()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprint(conn, "220 ready\r\n")
		conn.Close()
	}
}
