package fuzz

import "github.com/sallyport/sallyport/alpn"

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
	var all []byte
	for _, e := range extensions {
		all = append(all, byte(e.kind>>8), byte(e.kind))
		all = append(all, vec16(e.data)...)
	}
	body = append(body, vec16(all)...)
	return append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
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

// parsed is what alpn reads of a whole hello.
func parsed(b []byte) (*alpn.Hello, error) {
	h := &alpn.Hello{}
	need, err := h.Parse(b)
	if err == nil && need > 0 {
		err = errShort
	}
	return h, err
}
