package fuzz

import (
	"bytes"

	"github.com/sallyport/sallyport/alpn"
)

// extension is one of a hello built by hand.
type extension struct {
	kind uint16
	data []byte
}

func vec8(b []byte) []byte  { return append([]byte{byte(len(b))}, b...) }
func vec16(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }

// serverName is the extension of RFC 6066, section 3.
func serverName(name string) extension {
	return extension{0, vec16(append([]byte{0}, vec16([]byte(name))...))}
}

// protocolList is the extension of RFC 7301, section 3.1.
func protocolList(ids []string) extension {
	var list []byte
	for _, id := range ids {
		list = append(list, vec8([]byte(id))...)
	}
	return extension{16, vec16(list)}
}

// handHello is a ClientHello message of TLS 1.2, without records: what a server
// needs, and the extensions.
func handHello(extensions ...extension) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vec8(nil)...)
	body = append(body, vec16([]byte{0xc0, 0x2b, 0xc0, 0x2f})...)
	body = append(body, vec8([]byte{0})...)
	return withExtensions(append([]byte{1, 0, 0, 0}, body...), extensions)
}

// askFor is a hello that asks for a name and offers protocols, as records.
func askFor(name string, protocols []string) []byte {
	var extensions []extension
	if name != "" {
		extensions = append(extensions, serverName(name))
	}
	if len(protocols) > 0 {
		extensions = append(extensions, protocolList(protocols))
	}
	return cutAt(handHello(extensions...), maxRecord)
}

const maxRecord = 1 << 14 // RFC 8446, section 5.1

// cutAt puts a handshake message into records of size bytes.
func cutAt(message []byte, size int) []byte {
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message), maxRecord)
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

// messageOf takes the handshake message out of its records, as far as it is
// there, and whatever follows it.
func messageOf(b []byte) (message []byte) {
	for len(b) >= 5 {
		n := min(5+int(b[3])<<8+int(b[4]), len(b))
		message, b = append(message, b[5:n]...), b[n:]
	}
	return message
}

// extensionsOf takes a whole hello apart: what stands before the extensions, the
// message's header included, and the extensions.
func extensionsOf(message []byte) (head []byte, all []extension) {
	at := 4 + 2 + 32
	at += 1 + int(message[at])
	at += 2 + int(message[at])<<8 + int(message[at+1])
	at += 1 + int(message[at])
	head = message[:at]
	for rest := message[min(at+2, len(message)):]; len(rest) >= 4; {
		n := 4 + int(rest[2])<<8 + int(rest[3])
		all = append(all, extension{uint16(rest[0])<<8 | uint16(rest[1]), rest[4:n]})
		rest = rest[n:]
	}
	return head, all
}

// withExtensions puts a hello together again.
func withExtensions(head []byte, all []extension) []byte {
	var list []byte
	for _, e := range all {
		list = append(list, byte(e.kind>>8), byte(e.kind))
		list = append(list, vec16(e.data)...)
	}
	return counted(append(bytes.Clone(head), vec16(list)...))
}

// counted writes a handshake message's length into its header.
func counted(message []byte) []byte {
	n := len(message) - 4
	message[1], message[2], message[3] = byte(n>>16), byte(n>>8), byte(n)
	return message
}

// parsed is what alpn reads of a whole hello.
func parsed(b []byte) (*alpn.Hello, error) {
	h := &alpn.Hello{}
	need, err := h.Parse(b)
	if err == nil && need > 0 {
		err = errShort
	}
	return h, err
}
