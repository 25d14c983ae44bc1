package preamble

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// startup is a StartupMessage as pgproto3 writes it.
func startup(t testing.TB, parameters map[string]string) []byte {
	t.Helper()
	b, err := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: parameters}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packet(size uint32, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, size), rest...)
}

func TestA110_PostgresFirstPacket(t *testing.T) {
	long := append(packet(pgMaxStartup+1, 0, 3, 0, 0), make([]byte, pgMaxStartup)...)
	tests := []struct {
		name string
		in   []byte
		kind PostgresKind
		need int
		err  error
	}{
		{"nothing", nil, 0, 8, nil},
		{"seven bytes", packet(8, 4, 0xd2, 0x16), 0, 8, nil},
		{"ssl", packet(8, 4, 0xd2, 0x16, 0x2f), PostgresSSL, 0, nil},
		{"ssl and more", packet(8, 4, 0xd2, 0x16, 0x2f, 0x16, 3), PostgresSSL, 0, nil},
		{"ssl of 9", packet(9, 4, 0xd2, 0x16, 0x2f), 0, 0, ErrMalformed},
		{"gssenc", packet(8, 4, 0xd2, 0x16, 0x30), PostgresGSSENC, 0, nil},
		{"cancel", packet(16, 4, 0xd2, 0x16, 0x2e, 0, 1, 0, 2, 0, 0, 0, 3), PostgresCancel, 0, nil},
		{"half a cancel", packet(16, 4, 0xd2, 0x16, 0x2e, 0, 1), 0, 16, nil},
		{"cancel of 8", packet(8, 4, 0xd2, 0x16, 0x2e), 0, 0, ErrMalformed},
		{"startup", startup(t, map[string]string{"user": "alice"}), PostgresStartup, 0, nil},
		{"no parameters", packet(9, 0, 3, 0, 0, 0), 0, 0, ErrMalformed},
		{"version 3.9999", packet(12, 0, 3, 0x27, 0x0f, 'a', 0, 0, 0), PostgresStartup, 0, nil},
		{"length 0", packet(0, 0, 3, 0, 0), 0, 0, ErrMalformed},
		{"length 1", packet(1, 0, 3, 0, 0), 0, 0, ErrMalformed},
		{"length 8", packet(8, 0, 3, 0, 0), 0, 0, ErrMalformed},
		{"length 2^31", packet(1<<31, 0, 3, 0, 0), 0, 0, ErrTooLarge},
		{"length 2^32-1", packet(1<<32-1, 0, 3, 0, 0), 0, 0, ErrTooLarge},
		{"10,001 bytes", long, 0, 0, ErrTooLarge},
		{"version 2", packet(9, 0, 2, 0, 0, 0), 0, 0, ErrMalformed},
		{"no end", packet(10, 0, 3, 0, 0, 'a', 'b'), 0, 0, ErrMalformed},
		{"no last zero", packet(12, 0, 3, 0, 0, 'a', 0, 'b', 0), 0, 0, ErrMalformed},
		{"a name alone", packet(11, 0, 3, 0, 0, 'a', 0, 0), 0, 0, ErrMalformed},
		{"bytes behind the end", packet(14, 0, 3, 0, 0, 'a', 0, 'b', 0, 0, 'c'), 0, 0, ErrMalformed},
		{"zeros behind the end", packet(14, 0, 3, 0, 0, 'a', 0, 'b', 0, 0, 0), 0, 0, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, need, err := ParsePostgres(tt.in)
			if need != tt.need || !errors.Is(err, tt.err) {
				t.Fatalf("need %d, %v; want %d, %v", need, err, tt.need, tt.err)
			}
			if need == 0 && err == nil && p.Kind != tt.kind {
				t.Errorf("kind %d, want %d", p.Kind, tt.kind)
			}
		})
	}
	p, _, _ := ParsePostgres(packet(16, 4, 0xd2, 0x16, 0x2e, 0, 1, 0, 2, 0, 0, 0, 3))
	if p.PID != 0x10002 || p.Key != 3 {
		t.Errorf("cancel names %x, %x", p.PID, p.Key)
	}
	p, _, _ = ParsePostgres(startup(t, map[string]string{"user": "alice", "database": "orders"}))
	if user, ok := p.Parameter("user"); user != "alice" || !ok {
		t.Errorf("user %q, %v", user, ok)
	}
	if _, ok := p.Parameter("options"); ok {
		t.Error("a parameter that is not there")
	}
}

// TestRefused28000: what we answer reads back in another implementation.
func TestRefused28000(t *testing.T) {
	b := Refused28000("this server wants TLS", "use sslmode=verify-full")
	msg, err := pgproto3.NewFrontend(bytes.NewReader(b), io.Discard).Receive()
	if err != nil {
		t.Fatal(err)
	}
	e, ok := msg.(*pgproto3.ErrorResponse)
	if !ok || e.Code != "28000" || e.Severity != "FATAL" || e.SeverityUnlocalized != "FATAL" || e.Message != "this server wants TLS" || e.Hint != "use sslmode=verify-full" {
		t.Errorf("%#v", msg)
	}
}

// minorZero makes a minor version of 3 that pgproto3 does not know (3.9999 is
// what libpq greases with) one that it does: it changes nothing in the frame.
func minorZero(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) >= pgHeader && binary.BigEndian.Uint16(b[4:]) == pgMajor {
		b[6], b[7] = 0, 0
	}
	return b
}

// stricterThan names what pgproto3 reads and we, as the server does, refuse:
// requests that are not of their one size (a key of more than four bytes is
// only ever an answer to one that the agent gave, and it gives none), and names
// that are empty, where the server sees the end.
func stricterThan(msg pgproto3.FrontendMessage, b []byte) bool {
	size := binary.BigEndian.Uint32(b)
	switch msg := msg.(type) {
	case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
		return size != pgRequestSize
	case *pgproto3.CancelRequest:
		return size != pgCancelSize
	case *pgproto3.StartupMessage:
		_, empty := msg.Parameters[""]
		return empty || size > pgMaxStartup // pgproto3 does not count the length's own bytes
	}
	return false
}

// FuzzPostgres holds our reading against pgproto3's: same kind, same frame, same
// names. What it reads and we refuse is one of the cases of stricterThan.
func FuzzPostgres(f *testing.F) {
	for _, b := range postgresSeeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkPostgres)
}

// TestRandomPostgres is FuzzPostgres without coverage, for many more inputs.
func TestRandomPostgres(t *testing.T) { mutants(t, postgresSeeds(t), checkPostgres) }

func postgresSeeds(t testing.TB) [][]byte {
	return [][]byte{
		packet(8, 4, 0xd2, 0x16, 0x2f),
		packet(8, 4, 0xd2, 0x16, 0x30),
		packet(16, 4, 0xd2, 0x16, 0x2e, 0, 1, 0, 2, 0, 0, 0, 3),
		startup(t, map[string]string{"user": "alice", "database": "orders", "_pq_.x": "1"}),
		packet(14, 0, 3, 0, 0, 'a', 0, 'b', 0, 0, 0),
	}
}

func checkPostgres(t *testing.T, b []byte) {
	t.Helper()
	p, need, err := ParsePostgres(b)
	if need != 0 && (need <= len(b) || need > pgMaxStartup || err != nil) {
		t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
	}
	msg, theirs := pgproto3.NewBackend(bytes.NewReader(minorZero(b)), io.Discard).ReceiveStartupMessage()
	if need != 0 {
		if theirs == nil {
			t.Fatalf("need %d, pgproto3 read %#v", need, msg)
		}
		return
	}
	if err != nil {
		if theirs == nil && !stricterThan(msg, b) {
			t.Fatalf("%v, pgproto3 read %#v", err, msg)
		}
		return
	}
	if theirs != nil {
		t.Fatalf("read kind %d, pgproto3: %v", p.Kind, theirs)
	}
	switch msg := msg.(type) {
	case *pgproto3.SSLRequest:
		if p.Kind != PostgresSSL || p.Size != 8 {
			t.Fatalf("%+v", p)
		}
	case *pgproto3.GSSEncRequest:
		if p.Kind != PostgresGSSENC || p.Size != 8 {
			t.Fatalf("%+v", p)
		}
	case *pgproto3.CancelRequest:
		if p.Kind != PostgresCancel || msg.ProcessID != p.PID || !bytes.Equal(msg.SecretKey, binary.BigEndian.AppendUint32(nil, p.Key)) {
			t.Fatalf("%+v, pgproto3 %+v", p, msg)
		}
	case *pgproto3.StartupMessage:
		if p.Kind != PostgresStartup || p.Size != int(binary.BigEndian.Uint32(b)) {
			t.Fatalf("%+v", p)
		}
		for name, want := range msg.Parameters {
			if got, ok := p.Parameter(name); !ok || got != want {
				t.Fatalf("parameter %q is %q, pgproto3 %q", name, got, want)
			}
		}
		for i, s := range bytes.Split(bytes.TrimSuffix(p.Parameters, []byte{0, 0}), []byte{0}) {
			if _, ok := msg.Parameters[string(s)]; i%2 == 0 && !ok {
				t.Fatalf("parameter %q, pgproto3 has none", s)
			}
		}
	}
}
