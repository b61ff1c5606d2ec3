// Package portreeve is a client of Portreeve, a privileged-helper broker for Linux: a daemon without privileges requests
// listeners on privileged ports, and IP addresses with leases.
//
//	client, err := portreeve.Open(ctx, "my-server", "")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	listener, err := client.Listen(ctx, "*:25", nil)
//	if err != nil {
//		return err
//	}
//	defer listener.Close() // stops the listener
//
// After the end of the broker, [Client.Done] is closed, and the sockets that a program has continue to work. Open another
// session then, and repeat the requests: the same endpoint returns the same socket if the broker still has it.
//
// An error that is a *[Fault] is the broker's refusal: decide by its code, as in errors.Is(err, portreeve.Denied).
package portreeve
