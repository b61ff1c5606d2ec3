package portreeve

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The encoding of values: see "The body" in WIRE.md. It follows from the fields of a message:
//
//	unsigned integers and bool     as they are
//	string `wire:"64"`             a text of at most 64 bytes
//	*T                             an option
//	*T `wire:"trailing"`           a field that a later release has added
//	[]T `wire:"253"`               a list of at most 253 values; `wire:"32,16"` one of at most 32 texts of at most 16 bytes
//	[4]T                           an array
//	netip.Addr                     an address
//	any type `wire:"-"`            a field that is not a part of the message
//
// Every value has exactly one encoding, and all other bytes are refused. A decoded value is never larger than its bytes
// allow, and no length is used before it was compared with its maximum.

// A selfCoded type has an encoding of its own.
type selfCoded interface {
	put(*encoder)
	get(*decoder)
}

var (
	selfCodedType = reflect.TypeOf((*selfCoded)(nil)).Elem()
	addressType   = reflect.TypeOf(netip.Addr{})
)

// A tag is the numbers and the word of a field's tag.
type tag struct {
	limits   []uint64
	trailing bool
}

func parseTag(text string) tag {
	var parsed tag
	for _, word := range strings.Split(text, ",") {
		if number, err := strconv.ParseUint(word, 10, 32); err == nil {
			parsed.limits = append(parsed.limits, number)
		} else if word == "trailing" {
			parsed.trailing = true
		}
	}
	return parsed
}

// next takes the first limit.
func (t tag) next() (uint64, tag) {
	if len(t.limits) == 0 {
		panic("portreeve: a field of a message has no limit") // a mistake in this package, which its tests would find
	}
	return t.limits[0], tag{limits: t.limits[1:]}
}

type encoder struct {
	out []byte
	err error
}

func encode(message any) ([]byte, error) {
	e := encoder{}
	e.value(reflect.ValueOf(message), tag{}, reflect.TypeOf(message).String())
	if e.err == nil && len(e.out) > maxFrame-headerSize {
		e.fail("it has %d bytes, at most %d are allowed", len(e.out), maxFrame-headerSize)
	}
	return e.out, e.err
}

func (e *encoder) fail(format string, values ...any) {
	if e.err == nil {
		e.err = fmt.Errorf("cannot send the request: "+format, values...)
	}
}

func (e *encoder) number(bytes int, value uint64) {
	e.out = append(e.out, binary.LittleEndian.AppendUint64(nil, value)[:bytes]...)
}

func (e *encoder) text(value string, maximum uint64, what string) {
	switch {
	case uint64(len(value)) > maximum:
		e.fail("%s %.80q is too long: it has %d bytes, at most %d are allowed", what, value, len(value), maximum)
	case !utf8.ValidString(value):
		e.fail("%s %.80q is not valid UTF-8", what, value)
	}
	e.number(8, uint64(len(value)))
	e.out = append(e.out, value...)
}

func (e *encoder) address(value netip.Addr) {
	switch {
	case value.Zone() != "":
		e.fail("the address %s has a zone", value)
	case value.Is4():
		e.number(4, 0)
		e.out = append(e.out, value.AsSlice()...)
	case value.Is6():
		e.number(4, 1)
		e.out = append(e.out, value.AsSlice()...)
	default:
		e.fail("an address is missing")
	}
}

func (e *encoder) value(v reflect.Value, t tag, what string) {
	if v.Type() == addressType {
		e.address(v.Interface().(netip.Addr))
		return
	}
	if reflect.PointerTo(v.Type()).Implements(selfCodedType) {
		copied := reflect.New(v.Type())
		copied.Elem().Set(v)
		copied.Interface().(selfCoded).put(e)
		return
	}
	switch v.Kind() {
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		e.number(int(v.Type().Size()), v.Uint())
	case reflect.Bool:
		e.out = append(e.out, map[bool]byte{true: 1}[v.Bool()])
	case reflect.String:
		maximum, _ := t.next()
		e.text(v.String(), maximum, what)
	case reflect.Pointer:
		if !v.IsNil() {
			e.out = append(e.out, 1)
			e.value(v.Elem(), t, what)
		} else if !t.trailing {
			e.out = append(e.out, 0)
		}
	case reflect.Slice:
		maximum, rest := t.next()
		if uint64(v.Len()) > maximum {
			e.fail("%s has %d items, at most %d are allowed", what, v.Len(), maximum)
			return
		}
		e.number(8, uint64(v.Len()))
		for i := 0; i < v.Len(); i++ {
			e.value(v.Index(i), rest, what)
		}
	case reflect.Array:
		for i := 0; i < v.Len(); i++ {
			e.value(v.Index(i), t, what)
		}
	case reflect.Struct:
		for i := 0; i < v.NumField(); i++ {
			field := v.Type().Field(i)
			if text := field.Tag.Get("wire"); text != "-" {
				e.value(v.Field(i), parseTag(text), field.Name)
			}
		}
	default:
		panic("portreeve: a message has a field of the type " + v.Type().String())
	}
}

type decoder struct {
	data []byte
	err  error
}

// decode reads the message of a body into the value that a pointer points to.
func decode(body []byte, message any) error {
	d := decoder{data: body}
	d.value(reflect.ValueOf(message).Elem(), tag{})
	if len(d.data) > 0 {
		d.fail("bytes follow the message in a body")
	}
	return d.err
}

func (d *decoder) fail(format string, values ...any) {
	if d.err == nil {
		d.err = protocolError(format, values...)
	}
	d.data = nil
}

// take reads exactly this many bytes; zeros after an error.
func (d *decoder) take(count int) []byte {
	if d.err != nil || len(d.data) < count {
		d.fail("a body ends within a value")
		return make([]byte, count)
	}
	taken := d.data[:count]
	d.data = d.data[count:]
	return taken
}

func (d *decoder) number(bytes int) uint64 {
	var all [8]byte
	copy(all[:], d.take(bytes))
	return binary.LittleEndian.Uint64(all[:])
}

func (d *decoder) boolean() bool {
	value := d.number(1)
	if value > 1 {
		d.fail("a bool is %d", value)
	}
	return value == 1
}

func (d *decoder) text(maximum uint64) string {
	length := d.number(8)
	if length > maximum {
		d.fail("a text has %d bytes, at most %d are allowed", length, maximum)
		return ""
	}
	text := string(d.take(int(length)))
	if !utf8.ValidString(text) {
		d.fail("a text is not UTF-8")
	}
	return text
}

func (d *decoder) address() netip.Addr {
	switch tag := d.number(4); tag {
	case 0:
		return netip.AddrFrom4(*(*[4]byte)(d.take(4)))
	case 1:
		return netip.AddrFrom16(*(*[16]byte)(d.take(16)))
	default:
		d.fail("an address has the unknown tag %d", tag)
		return netip.Addr{}
	}
}

func (d *decoder) value(v reflect.Value, t tag) {
	if d.err != nil {
		return
	}
	if v.Type() == addressType {
		v.Set(reflect.ValueOf(d.address()))
		return
	}
	if coded, ok := v.Addr().Interface().(selfCoded); ok {
		coded.get(d)
		return
	}
	switch v.Kind() {
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(d.number(int(v.Type().Size())))
	case reflect.Bool:
		v.SetBool(d.boolean())
	case reflect.String:
		maximum, _ := t.next()
		v.SetString(d.text(maximum))
	case reflect.Pointer:
		if t.trailing && len(d.data) == 0 {
			return
		}
		if present := d.boolean(); present {
			v.Set(reflect.New(v.Type().Elem()))
			d.value(v.Elem(), t)
		} else if t.trailing {
			d.fail("a trailing field does not begin with 1")
		}
	case reflect.Slice:
		maximum, rest := t.next()
		count := d.number(8)
		if count > maximum {
			d.fail("a list has %d items, at most %d are allowed", count, maximum)
			return
		}
		for ; count > 0 && d.err == nil; count-- {
			item := reflect.New(v.Type().Elem()).Elem()
			d.value(item, rest)
			v.Set(reflect.Append(v, item))
		}
	case reflect.Array:
		for i := 0; i < v.Len(); i++ {
			d.value(v.Index(i), t)
		}
	case reflect.Struct:
		for i := 0; i < v.NumField(); i++ {
			if text := v.Type().Field(i).Tag.Get("wire"); text != "-" {
				d.value(v.Field(i), parseTag(text))
			}
		}
	default:
		panic("portreeve: a message has a field of the type " + v.Type().String())
	}
}
