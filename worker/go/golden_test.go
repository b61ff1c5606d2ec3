package portreeve

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// goldenFrames reads golden/frames.txt.
func goldenFrames(t *testing.T) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("../../protocol/tests/golden/frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	frames, name := map[string][]byte{}, ""
	for _, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if strings.HasPrefix(line, "[") {
			name = strings.Trim(line, "[]")
			continue
		}
		bytes, err := hex.DecodeString(strings.ReplaceAll(line, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		frames[name] = append(frames[name], bytes...)
	}
	return frames
}

// messageTypes are the messages of this package by kind.
var messageTypes = map[uint16]any{
	kindHello:                     hello{},
	kindHello | kindReply:         Welcome{},
	kindPing:                      empty{},
	kindPing | kindReply:          empty{},
	kindListen:                    listen{},
	kindListen | kindReply:        listening{},
	kindListenMany:                listenMany{},
	kindListenMany | kindReply:    listeningMany{},
	kindStop:                      stop{},
	kindStop | kindReply:          Stopped{},
	kindStatus:                    statusRequest{},
	kindStatus | kindReply:        Status{},
	kindAddAddress:                addAddress{},
	kindAddAddress | kindReply:    leases{},
	kindRenewAddress:              renewAddress{},
	kindRenewAddress | kindReply:  leases{},
	kindRemoveAddress:             removeAddress{},
	kindRemoveAddress | kindReply: removals{},
	kindAnnounce:                  removeAddress{},
	kindAnnounce | kindReply:      leases{},
	kindListAddresses:             listAddresses{},
	kindListAddresses | kindReply: AddressPage{},
	kindMoveAddress:               moveAddress{},
	kindMoveAddress | kindReply:   leases{},
	kindSetLimit:                  setLimit{},
	kindSetLimit | kindReply:      Limit{},
	kindPolicy:                    policyRequest{},
	kindPolicy | kindReply:        PolicyPage{},
	kindSubscribe:                 subscribe{},
	kindSubscribe | kindReply:     subscribed{},
	kindEvent:                     Event{},
	kindFault:                     Fault{},
}

func TestEveryGoldenFrameIsDecodedAndEncodedAgain(t *testing.T) {
	tested := map[uint16]bool{}
	for name, frame := range goldenFrames(t) {
		if len(frame) == 0 {
			continue
		}
		kind := binary.LittleEndian.Uint16(frame[6:])
		message, known := messageTypes[kind]
		if !known {
			continue
		}
		tested[kind] = true
		decoded := reflect.New(reflect.TypeOf(message))
		if err := decode(frame[headerSize:], decoded.Interface()); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, err := encode(decoded.Elem().Interface())
		if err != nil || !bytes.Equal(body, frame[headerSize:]) {
			t.Errorf("%s: encoded as %x (%v)", name, body, err)
		}
		again := encodeFrame(kind, binary.LittleEndian.Uint32(frame[8:]), body)
		again[14] = frame[14]
		if !bytes.Equal(again, frame) {
			t.Errorf("%s: the frame is encoded as %x", name, again)
		}
		if _, err := decodeFrame(frame, make([]int, frame[14]), false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for kind := range messageTypes {
		if !tested[kind] {
			t.Errorf("no golden frame has the kind %#04x", kind)
		}
	}
}

func mustParse(t *testing.T, text string) Endpoint {
	t.Helper()
	endpoint, err := ParseEndpoint(text)
	if err != nil {
		t.Fatal(err)
	}
	return endpoint
}

func pointer[T any](value T) *T { return &value }

func TestRequestsHaveTheBytesOfTheGoldenFrames(t *testing.T) {
	every := ListenOptions{
		Backlog: pointer(uint32(1024)), ReusePort: true, DualStack: true, FreeBind: true, Device: "eth0",
		ReceiveBuffer: pointer(uint32(0)), SendBuffer: pointer(uint32(262144)), NoDelay: pointer(false),
		DeferAccept: 30, FastOpen: 16, Mode: pointer(uint32(0o660)),
	}
	frames := goldenFrames(t)
	for name, request := range map[string]ListenRequest{
		"listen":                {Endpoint: mustParse(t, "*:25")},
		"listen-udp":            {Endpoint: mustParse(t, "[fe80::1%eth0]:53/udp")},
		"listen-unix-stream":    {Endpoint: mustParse(t, "/run/mail.sock")},
		"listen-unix-seqpacket": {Endpoint: mustParse(t, "seqpacket:/run/mail.sock")},
		"listen-tcp6":           {mustParse(t, "[2001:db8::1]:465"), every},
	} {
		body, err := encode(listen{ListenRequest: request})
		if err != nil || !bytes.Equal(encodeFrame(kindListen, 2, body), frames[name]) {
			t.Errorf("%s: %x (%v)", name, body, err)
		}
	}
}

func TestABodyHasOneEncodingAndNoLengthIsTrusted(t *testing.T) {
	stopBody, _ := encode(stop{[]uint64{7, 8}})
	long := make([]byte, 300)
	for name, one := range map[string]struct {
		message any
		body    []byte
		why     string
	}{
		"surplus":       {&stop{}, append(append([]byte{}, stopBody...), 0), "bytes follow"},
		"short":         {&stop{}, stopBody[:len(stopBody)-1], "ends within a value"},
		"bool":          {&subscribe{}, []byte{2, 0}, "a bool is 2"},
		"utf8":          {&hello{}, append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0xff}, make([]byte, 8)...), "not UTF-8"},
		"endpoint":      {&ListenRequest{}, append([]byte{4}, make([]byte, 45)...), "endpoint has the unknown tag 4"},
		"address":       {&ListenRequest{}, append([]byte{0, 0, 0, 0, 2}, make([]byte, 41)...), "address has the unknown tag 2"},
		"trailing":      {&leases{}, make([]byte, 9), "does not begin with 1"},
		"outcome":       {&listeningMany{}, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0}, "result has the unknown tag 2"},
		"count":         {&stop{}, append([]byte{254}, long...), "a list has 254 items"},
		"huge count":    {&stop{}, append([]byte{255, 255, 255, 255, 255, 255, 255, 255}, long...), "a list has 18446744073709551615"},
		"count of less": {&stop{}, append([]byte{253}, make([]byte, 80)...), "ends within a value"},
		"text":          {&hello{}, append([]byte{65}, long...), "a text has 65 bytes"},
	} {
		err := decode(one.body, one.message)
		if err == nil || !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), one.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValuesThatCannotBeSentAreNamed(t *testing.T) {
	many := make([]uint64, 254)
	for _, one := range []struct {
		message any
		why     string
	}{
		{hello{Client: strings.Repeat("n", 65)}, "Client \"n"},
		{hello{Client: "\xff"}, "is not valid UTF-8"},
		{stop{many}, "Listeners has 254 items, at most 253 are allowed"},
		{ListenRequest{}, "an address is missing"},
		{ListenRequest{Endpoint: Endpoint{Address: netip.MustParseAddr("fe80::1%eth0")}}, "has a zone"},
	} {
		_, err := encode(one.message)
		if err == nil || !strings.HasPrefix(err.Error(), "cannot send the request: ") || !strings.Contains(err.Error(), one.why) {
			t.Errorf("%v: %v", one.why, err)
		}
	}
}

func TestEveryNotationIsParsedAndPrinted(t *testing.T) {
	for text, printed := range map[string]string{
		":25":                      "*:25",
		"*:25":                     "*:25",
		"0.0.0.0:25":               "*:25",
		"192.0.2.1:25/tcp":         "192.0.2.1:25",
		"[*]:25":                   "[::]:25",
		"[::]:25":                  "[::]:25",
		"[2001:db8::1]:587":        "[2001:db8::1]:587",
		"[fe80::1%eth0]:25":        "[fe80::1%eth0]:25",
		"*:53/udp":                 "*:53/udp",
		"/run/mail.sock":           "/run/mail.sock",
		"seqpacket:/run/mail.sock": "seqpacket:/run/mail.sock",
	} {
		if endpoint := mustParse(t, text); endpoint.String() != printed || mustParse(t, printed) != endpoint {
			t.Errorf("%s is printed as %s", text, endpoint)
		}
	}
	for text, why := range map[string]string{
		"25":                           "missing",
		"192.0.2.1":                    "missing",
		"*:0":                          "is not a number",
		"*:+25":                        "is not a number",
		"*:65536":                      "is not a number",
		"::1:25":                       `"::1" is not an IPv4 address`,
		"[192.0.2.1]:25":               `"192.0.2.1" in brackets is not an IPv6 address`,
		"mx1:25":                       `"mx1" is not an IPv4 address`,
		"[:25":                         `"[" is not an IPv4 address`,
		"[fe80::1%]:25":                "is not an interface name",
		"*:25/sctp":                    `"sctp" is not a transport`,
		"/" + strings.Repeat("n", 107): "108 bytes",
	} {
		if _, err := ParseEndpoint(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAFaultIsItsCodeAndIsPrintedInOneLine(t *testing.T) {
	var err error = &Fault{Code: Denied, Message: "it is not\x1b[2J\u202e allowed", Remedy: "write\na permit"}
	if !errors.Is(err, Denied) || errors.Is(err, InUse) || Denied.Error() != "denied" || FaultCode(99).Error() != "fault 99" {
		t.Error(err)
	}
	if text := err.Error(); text != `it is not\u{1b}[2J\u{202e} allowed. write\u{a}a permit` {
		t.Error(text)
	}
	var fault *Fault
	if !errors.As(error(&endedError{err.(*Fault)}), &fault) || fault.Code != Denied || !errors.Is(&endedError{fault}, ErrClosed) {
		t.Error(fault)
	}
}
