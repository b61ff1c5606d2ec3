package portreeve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	maxFrame       = 65536
	headerSize     = 16
	maxDescriptors = 253
	version        = 1
	magic          = "PRTV"
	kindReply      = 0x8000
	kindFault      = 0xffff
	kindEvent      = 0xfffe

	firstDescriptor = 3
	connectPause    = 20 * time.Millisecond
)

// A frame is a received frame. It owns its descriptors until they are taken.
type frame struct {
	kind            uint16
	request         uint32
	body            []byte
	descriptors     []int
	descriptorsLost bool
}

func (f *frame) close() {
	for _, descriptor := range f.descriptors {
		syscall.Close(descriptor)
	}
	f.descriptors = nil
}

func encodeFrame(kind uint16, request uint32, body []byte) []byte {
	out := make([]byte, headerSize, headerSize+len(body))
	copy(out, magic)
	binary.LittleEndian.PutUint16(out[4:], version)
	binary.LittleEndian.PutUint16(out[6:], kind)
	binary.LittleEndian.PutUint32(out[8:], request)
	binary.LittleEndian.PutUint16(out[12:], uint16(len(body)))
	return append(out, body...)
}

// decodeFrame checks the header of a packet.
func decodeFrame(packet []byte, descriptors []int, lost bool) (*frame, error) {
	if len(packet) < headerSize || string(packet[:4]) != magic {
		return nil, protocolError("a packet of %d bytes is not a frame", len(packet))
	}
	if found := binary.LittleEndian.Uint16(packet[4:]); found != version {
		return nil, protocolError("it speaks version %d, this program version %d. Install the same release of both", found, version)
	}
	if int(binary.LittleEndian.Uint16(packet[12:])) != len(packet)-headerSize || packet[15] != 0 {
		return nil, protocolError("the header of a frame does not agree with its length")
	}
	declared := int(packet[14])
	if declared > maxDescriptors || lost && declared == 0 || !lost && declared != len(descriptors) {
		return nil, protocolError("a frame declares %d descriptors and %d were received", declared, len(descriptors))
	}
	return &frame{
		kind:            binary.LittleEndian.Uint16(packet[6:]),
		request:         binary.LittleEndian.Uint32(packet[8:]),
		body:            append([]byte(nil), packet[headerSize:]...),
		descriptors:     descriptors,
		descriptorsLost: lost,
	}, nil
}

// A channel is the client's end of the channel.
type channel struct {
	conn    *net.UnixConn
	raw     syscall.RawConn
	packet  [maxFrame]byte
	control []byte
	reset   bool
	// sending admits one sender at a time.
	sending chan struct{}
}

func newChannel(conn *net.UnixConn) (*channel, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &channel{
		conn: conn, raw: raw, control: make([]byte, syscall.CmsgSpace(4*maxDescriptors)), sending: make(chan struct{}, 1),
	}, nil
}

// send sends a frame. After the end of the session it succeeds: the reason is what receive returns, because the broker's last
// fault may still be queued.
func (c *channel) send(ctx context.Context, frame []byte) error {
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	sent, err := c.trySend(frame)
	if sent || err != nil {
		return err
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // it fails only on a closed channel
		case <-done:
		}
	}()
	err = c.raw.Write(func(descriptor uintptr) bool {
		err = sendPacket(int(descriptor), frame)
		return err != syscall.EAGAIN
	})
	close(done)
	<-stopped
	_ = c.conn.SetWriteDeadline(time.Time{}) // as above
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return sendError(err)
}

func (c *channel) trySend(frame []byte) (bool, error) {
	var err error
	if controlErr := c.raw.Control(func(descriptor uintptr) { err = sendPacket(int(descriptor), frame) }); controlErr != nil {
		return true, nil // the channel is closed
	}
	if err == syscall.EAGAIN {
		return false, nil
	}
	return true, sendError(err)
}

func sendPacket(descriptor int, frame []byte) error {
	for {
		_, err := syscall.SendmsgN(descriptor, frame, nil, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return err
		}
	}
}

func sendError(err error) error {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return nil
	}
	return fmt.Errorf("cannot send a request to the broker: %w", err)
}

// receive waits for a frame.
func (c *channel) receive() (*frame, error) {
	var count, controlCount, flags int
	var err error
	readErr := c.raw.Read(func(descriptor uintptr) bool {
		for {
			count, controlCount, flags, _, err = syscall.Recvmsg(
				int(descriptor), c.packet[:], c.control, syscall.MSG_CMSG_CLOEXEC|syscall.MSG_DONTWAIT)
			if err != syscall.EINTR {
				return err != syscall.EAGAIN
			}
		}
	})
	switch {
	case readErr != nil:
		return nil, ErrClosed
	case err == syscall.ECONNRESET && !c.reset:
		// This is reported at most once, and what the broker sent before is still queued.
		c.reset = true
		return c.receive()
	case err != nil:
		return nil, fmt.Errorf("%w: cannot receive from the broker: %v", ErrClosed, err)
	}
	descriptors, err := parseDescriptors(c.control[:controlCount])
	received := &frame{descriptors: descriptors}
	switch {
	case err != nil:
		received.close()
		return nil, protocolError("a control message is invalid: %v", err)
	case flags&syscall.MSG_TRUNC != 0:
		received.close()
		return nil, protocolError("a frame is longer than %d bytes", maxFrame)
	case count == 0:
		received.close()
		return nil, ErrClosed
	}
	decoded, err := decodeFrame(c.packet[:count], descriptors, flags&syscall.MSG_CTRUNC != 0)
	if err != nil {
		received.close()
	}
	return decoded, err
}

func parseDescriptors(control []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	var all []int
	for i := range messages {
		if messages[i].Header.Level != syscall.SOL_SOCKET || messages[i].Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		var some []int
		if some, err = syscall.ParseUnixRights(&messages[i]); err != nil {
			break
		}
		all = append(all, some...)
	}
	return all, err
}

// connect connects to the control socket.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unixpacket", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("cannot connect to the broker at %s: %w. %s", printable(path), err, connectRemedy(err))
		}
		// The broker's queue of connections is full.
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot connect to the broker at %s: it has not accepted the connection in time: %w",
				printable(path), ctx.Err())
		}
	}
}

func connectRemedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return "Start portreeved, or name the control socket of its configuration"
	case errors.Is(err, syscall.EACCES):
		return "Run as a user or group that may write to the control socket: see socket_mode and socket_group in portreeve.conf(5)"
	case errors.Is(err, syscall.EPROTOTYPE):
		return "This socket belongs to another program. Name the control socket of the broker"
	}
	return "See connect(2)"
}

// inherited takes the channel that the broker gave to its worker.
func inherited(value string) (*net.UnixConn, error) {
	descriptor, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is not a number. The broker sets this variable", ChannelVariable, value)
	}
	file, err := takeInherited(descriptor)
	if err != nil {
		return nil, err
	}
	defer file.Close() // FileConn makes a copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: %w. Start this program as the broker's worker", descriptor, err)
	}
	channel, ok := conn.(*net.UnixConn)
	if !ok || channel.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, fmt.Errorf("descriptor %d is not a sequenced-packet Unix socket. Start this program as the broker's worker",
			descriptor)
	}
	return channel, nil
}

// takeInherited takes ownership of a descriptor that survived exec(2).
func takeInherited(descriptor int) (*os.File, error) {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(descriptor), syscall.F_GETFD, 0)
	// A descriptor that survived exec(2) is not close-on-exec; one that Go opened, or that was taken before, is.
	if errno != 0 || descriptor < firstDescriptor || flags&syscall.FD_CLOEXEC != 0 {
		return nil, fmt.Errorf("descriptor %d was not inherited, or was taken before. The broker or the service manager has to "+
			"start this program", descriptor)
	}
	syscall.CloseOnExec(descriptor)
	return os.NewFile(uintptr(descriptor), "inherited"), nil
}
