package alpn

// Answer is one of three: what a probe can say about a prefix of a stream.
type Answer uint8

const (
	No   Answer = iota // whatever follows, it is not this
	Yes                // it is this
	More               // it may be; more bytes are needed
)

// String names the answer.
func (a Answer) String() string {
	return [...]string{No: "no", Yes: "yes", More: "more"}[a]
}

// Protocol is what the first bytes of a connection say it is.
type Protocol uint8

const (
	Unknown    Protocol = iota
	TLS                 // a handshake record (RFC 8446, section 5.1)
	Data                // an agent's data connection
	SSH                 // RFC 4253, section 4.2
	SSLRequest          // PostgreSQL, section 53.7 "Message Formats"
	GSSENCRequest
	CancelRequest
	StartupMessage // PostgreSQL 3.x, in clear
	TPKT           // RFC 1006: RDP's X.224 connection request
	HTTP           // an HTTP/1 method
	ProxyV1        // the PROXY protocol, text
	ProxyV2        // the PROXY protocol, binary
	protocols      // their number
)

// String names the protocol as counters do.
func (p Protocol) String() string {
	return [...]string{
		Unknown: "unknown", TLS: "tls", Data: "data", SSH: "ssh",
		SSLRequest: "pg_ssl", GSSENCRequest: "pg_gssenc", CancelRequest: "pg_cancel", StartupMessage: "pg_startup",
		TPKT: "tpkt", HTTP: "http", ProxyV1: "proxy_v1", ProxyV2: "proxy_v2",
	}[p]
}

// first is the table of first bytes. '?' in a pattern stands for any byte: no
// row needs it literally. No pattern is a prefix of another, and no two match
// the same bytes, so at most one row answers yes.
var first = [...]struct {
	pattern  string
	protocol Protocol
}{
	{"\x16\x03", TLS},
	{"SLYP", Data},
	{"SSH-", SSH},
	{"\x00\x00\x00\x08\x04\xd2\x16\x2f", SSLRequest},
	{"\x00\x00\x00\x08\x04\xd2\x16\x30", GSSENCRequest},
	{"\x00\x00\x00\x10\x04\xd2\x16\x2e", CancelRequest},
	{"\x00\x00??\x00\x03??", StartupMessage},
	{"\x03\x00", TPKT},
	{"GET ", HTTP},
	{"HEAD ", HTTP},
	{"POST ", HTTP},
	{"PUT ", HTTP},
	{"PATCH ", HTTP},
	{"DELETE ", HTTP},
	{"OPTIONS ", HTTP},
	{"CONNECT ", HTTP},
	{"TRACE ", HTTP},
	{"PROXY ", ProxyV1},
	{"\r\n\r\n\x00\r\nQUIT\n", ProxyV2},
}

// Probe says what b begins with. With Yes the protocol is set; with More need
// is the length that b must reach before another answer is possible.
func Probe(b []byte) (p Protocol, a Answer, need int) {
	if len(b) >= 2 && b[0] == 0x16 && b[1] == 0x03 {
		return TLS, Yes, 0
	}
	for _, row := range &first {
		switch match(b, row.pattern) {
		case Yes:
			return row.protocol, Yes, 0
		case More:
			if need == 0 || len(row.pattern) < need {
				need = len(row.pattern)
			}
		}
	}
	if need > 0 {
		return Unknown, More, need
	}
	return Unknown, No, 0
}

func match(b []byte, pattern string) Answer {
	for i := range min(len(b), len(pattern)) {
		if pattern[i] != b[i] && pattern[i] != '?' {
			return No
		}
	}
	if len(b) < len(pattern) {
		return More
	}
	return Yes
}
