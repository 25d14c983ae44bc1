//go:build unix

package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

func TestResource(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		agentTLS := r.ca.server(t, alpn.DB1, alpn.PostgreSQL)
		for range 3 {
			conn := tls.Client(r.dial(), r.ca.client("Orders.db.gw.test", alpn.PostgreSQL))
			served := make(chan struct{})
			go func() {
				defer close(served)
				a := r.tunnels.agent()
				echoTLS(agentTLS)(a)
				a.Close()
			}()
			echoes(t, conn)
			<-served
			conn.Close()
		}
		eventually(t, "streams are given back", func() bool { return r.tunnels.endedNow() == 3 })
		eventually(t, "no relay is left", func() bool { return r.Snapshot().Relays == 0 })
		first := r.tunnels.requests[0]
		if first.Kind != "db" || first.Name != "orders" || first.Attempt != 0 || !first.Source.Addr().IsLoopback() {
			t.Errorf("leased %+v", first)
		}
		if first.ConnectionID == r.tunnels.requests[1].ConnectionID {
			t.Error("two connections have one id")
		}
		r.reaches(outcomeRelayed, 3)
	})
}

// TestA33_EveryCut: the agent gets what the client sent, byte for byte, however
// the hello was cut; nothing is consumed by looking.
func TestA33_EveryCut(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		config := r.ca.client("orders.db.gw.test", alpn.PostgreSQL)
		config.MaxVersion = tls.VersionTLS12 // a short hello
		hello := helloBytes(t, config)
		for cut := 1; cut < len(hello); cut++ {
			conn := r.say(hello[:cut])
			r.waiting(1)
			_, err := conn.Write(hello[cut:])
			check(t, err)
			agent := r.tunnels.agent()
			got := make([]byte, len(hello))
			_, err = io.ReadFull(agent, got)
			check(t, err)
			if !bytes.Equal(got, hello) {
				t.Fatalf("cut at %d: the agent got other bytes", cut)
			}
			r.waiting(0) // from here on the tunnels count it
			agent.answers(conn)
			agent.Close()
			conn.Close()
			r.waiting(0)
		}
	})
}

// TestA33_Records: the hello in tiny records, padded beyond what one look sees,
// and beyond what is taken at all.
func TestA33_Records(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		small := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		tests := map[string][]byte{
			"records of 16":    rerecord(small[5:], 16),
			"records of 1":     rerecord(small[5:], 1),
			"20 KiB":           rerecord(padded(small[5:], 20<<10), 1<<14),
			"60 KiB":           rerecord(padded(small[5:], 60<<10), 1<<14),
			"60 KiB, cut fine": rerecord(padded(small[5:], 50<<10), 50),
		}
		for name, hello := range tests {
			conn := r.dial()
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(conn, &drip{b: hello, size: 3000})
				sent <- err
			}()
			agent := r.tunnels.agent()
			got := make([]byte, len(hello))
			_, err := io.ReadFull(agent, got)
			check(t, err)
			check(t, <-sent)
			if !bytes.Equal(got, hello) {
				t.Fatalf("%s: the agent got other bytes", name)
			}
			_, err = agent.Write([]byte("answer"))
			check(t, err)
			answer := make([]byte, 6)
			_, err = io.ReadFull(conn, answer)
			check(t, err)
			_, err = conn.Write([]byte("then"))
			check(t, err)
			then := make([]byte, 4)
			if _, err = io.ReadFull(agent, then); err != nil || string(then) != "then" {
				t.Fatalf("%s: after the hello %q, %v", name, then, err)
			}
			agent.Close()
			conn.Close()
		}
		conn := r.dial()
		go func() { _, _ = conn.Write(rerecord(padded(small[5:], 65000), 10)) }()
		got, _ := io.ReadAll(conn)
		if want := alpn.DecodeError.Record(); !bytes.Equal(got, want[:]) {
			t.Errorf("70 KiB: %v", got)
		}
		r.reaches(outcomeHelloLarge, 1)
	})
}

// drip is read in small pieces.
type drip struct {
	b    []byte
	size int
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.b[:min(d.size, len(d.b))])
	d.b = d.b[n:]
	return n, nil
}

// rerecord cuts a handshake message into records of at most size bytes.
func rerecord(message []byte, size int) []byte {
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

// padded adds a padding extension (RFC 7685) at the front of the extensions of
// a ClientHello message.
func padded(message []byte, size int) []byte {
	at := 4 + 2 + 32
	at += 1 + int(message[at])
	at += 2 + int(message[at])<<8 + int(message[at+1])
	at += 1 + int(message[at])
	size = min(size, 0xffff-4-(int(message[at])<<8|int(message[at+1])))
	pad := append([]byte{0, 21, byte(size >> 8), byte(size)}, make([]byte, size)...)
	out := append(bytes.Clone(message[:at+2]), pad...)
	out = append(out, message[at+2:]...)
	n := len(out) - at - 2
	out[at], out[at+1] = byte(n>>8), byte(n)
	n = len(out) - 4
	out[1], out[2], out[3] = byte(n>>16), byte(n>>8), byte(n)
	return out
}

// TestA62_Alerts: what is refused is refused by an alert that Go and OpenSSL
// report by name, and unknown names, names without an agent, and names whose
// agents all fail are refused alike, byte for byte.
func TestA62_Alerts(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		unknown := alpn.UnrecognizedName.Record()
		protocol := alpn.NoApplicationProtocol.Record()
		tests := []struct {
			name, protocol string
			want           [alpn.AlertSize]byte
		}{
			{"nobody.db.gw.test", alpn.PostgreSQL, unknown},
			{"nobody.node.gw.test", alpn.SSH1, unknown},
			{"elsewhere.test", "h2", unknown},
			{"www.gw.test", "h2", unknown},
			{"grafana.gw.test", "h2", unknown},
			{"orders.db.gw.test", "http/1.1", protocol},
			{"nobody.db.gw.test", "http/1.1", protocol},
			{"host.node.gw.test", "h2", protocol},
			{"host.node.gw.test", "", protocol},
			{"gw.test", "postgresql", protocol},
			{"gw.test", alpn.SSH1, protocol},
			{"gw.test", alpn.Auth1, protocol},   // no auth here
			{"gw.test", alpn.Tunnel1, protocol}, // not served here
		}
		for _, tt := range tests {
			var protocols []string
			if tt.protocol != "" {
				protocols = []string{tt.protocol}
			}
			config := r.ca.client(tt.name, protocols...)
			conn := r.say(helloBytes(t, config))
			if got := readAll(t, conn); !bytes.Equal(got, tt.want[:]) {
				t.Errorf("%s with %q: %v, want %v", tt.name, tt.protocol, got, tt.want)
			}
			err := tls.Client(r.dial(), config).Handshake()
			var alert tls.AlertError
			var op *net.OpError
			if errors.As(err, &op) && op.Op == "remote error" {
				continue
			}
			if !errors.As(err, &alert) {
				t.Errorf("%s with %q: Go says %v", tt.name, tt.protocol, err)
			}
		}
		if n := len(r.tunnels.agents); n > 0 {
			t.Errorf("%d of them reached an agent", n)
		}
	})
}

func TestAlertByOpenSSL(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	out := command(t, nil, "openssl", "s_client", "-connect", r.addr, "-servername", "nobody.db.gw.test", "-alpn", "postgresql")
	if !strings.Contains(out, "unrecognized name") {
		t.Errorf("openssl: %s", out)
	}
	out = command(t, nil, "openssl", "s_client", "-connect", r.addr, "-servername", "orders.db.gw.test", "-alpn", "http/1.1")
	if !strings.Contains(out, "no application protocol") {
		t.Errorf("openssl: %s", out)
	}
}

// TestRetry: a data connection that ends before its first byte costs the client
// nothing; after three it is as if there were none.
func TestRetry(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		read := func(a *agentConn) {
			t.Helper()
			got := make([]byte, len(hello))
			_, err := io.ReadFull(a, got)
			check(t, err)
			if !bytes.Equal(got, hello) {
				t.Fatal("the agent got another flight")
			}
		}

		conn := r.say(hello)
		first := r.tunnels.agent()
		read(first)
		first.Close()
		second := r.tunnels.agent()
		read(second)
		check(t, second.Conn.(*net.TCPConn).SetLinger(0)) // a reset this time
		second.Close()
		third := r.tunnels.agent()
		read(third)
		_, err := third.Write([]byte("served"))
		check(t, err)
		third.Close()
		if got := readAll(t, conn); string(got) != "served" {
			t.Fatalf("the client got %q", got)
		}
		if first.request.ConnectionID != third.request.ConnectionID || third.request.Attempt != 2 {
			t.Errorf("leased %+v, then %+v", first.request, third.request)
		}
		conn.Close()

		conn = r.say(hello)
		for range 3 {
			a := r.tunnels.agent()
			read(a)
			a.Close()
		}
		want := alpn.UnrecognizedName.Record()
		if got := readAll(t, conn); !bytes.Equal(got, want[:]) {
			t.Errorf("after three: %v", got)
		}
		eventually(t, "all streams are given back", func() bool { return r.tunnels.endedNow() == 6 })
	})
}

// TestSlowFarEnd: a far end with room for a part of the flight only gets all of
// it, also when it answers before.
func TestSlowFarEnd(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.Connect, c.Bounds.Stage = patience, patience }) // the agent reads when the test has the time
		r.tunnels.answerNarrow()
		small := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		for _, size := range []int{14 << 10, 60 << 10} {
			hello := rerecord(padded(small[5:], size), 1<<14)
			for _, early := range []bool{false, true} {
				conn := r.dial()
				sent := make(chan error, 1)
				go func() {
					_, err := conn.Write(append(bytes.Clone(hello), "and more"...))
					sent <- err
				}()
				agent := r.tunnels.agent()
				if early {
					agent.answers(conn)
				}
				got := make([]byte, len(hello)-100)
				_, err := io.ReadFull(agent, got)
				check(t, err)
				agent.answers(conn)
				rest := make([]byte, 100+len("and more"))
				_, err = io.ReadFull(agent, rest)
				check(t, err)
				check(t, <-sent)
				if want := append(bytes.Clone(hello), "and more"...); !bytes.Equal(append(got, rest...), want) {
					t.Errorf("%d bytes, early answer %v: the agent got other bytes", len(hello), early)
				}
				agent.Close()
				conn.Close()
			}
		}
	})
}

// TestF13_ForgottenOnTheWay: a data connection whose peer does not acknowledge
// what it gets, and says nothing, gives way to another one; one that has
// acknowledged and takes its time does not.
func TestF13_ForgottenOnTheWay(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.Connect, c.Bounds.Stage = 300*time.Millisecond, patience })
		r.tunnels.stuffFirst()
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		conn := r.say(hello)
		forgotten := <-r.tunnels.agents
		defer forgotten.Close()
		second := r.tunnels.agent()
		got := make([]byte, len(hello))
		_, err := io.ReadFull(second, got)
		check(t, err)
		if !bytes.Equal(got, hello) || second.request.Attempt != 1 || second.request.ConnectionID != forgotten.request.ConnectionID {
			t.Errorf("the second got another flight, or %+v", second.request)
		}
		time.Sleep(2 * 300 * time.Millisecond) // longer than it takes to be forgotten: that it is not is what is tested
		_, err = second.Write([]byte("served"))
		check(t, err)
		second.Close()
		if got := readAll(t, conn); string(got) != "served" {
			t.Errorf("the client got %q", got)
		}
		conn.Close()
		eventually(t, "both are given back", func() bool { return r.tunnels.endedNow() == 2 })
	})
}

// TestLeaseIsTakenBack: a client that is gone does not wait for a connection.
func TestLeaseIsTakenBack(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		r.tunnels.answerNone()
		conn := r.say(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL)))
		leases := func() int { r.tunnels.mu.Lock(); defer r.tunnels.mu.Unlock(); return len(r.tunnels.requests) }
		eventually(t, "the lease is asked for", func() bool { return leases() == 1 })
		check(t, conn.SetLinger(0))
		conn.Close()
		eventually(t, "the lease is taken back", func() bool {
			r.tunnels.mu.Lock()
			defer r.tunnels.mu.Unlock()
			return r.tunnels.cancelled == 1
		})
	})
}

// TestHalfClose: the end of the client's stream reaches the agent, and what the
// agent says after it reaches the client.
func TestHalfClose(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		conn := r.say(hello)
		check(t, conn.CloseWrite())
		agent := r.tunnels.agent()
		got := make([]byte, len(hello))
		_, err := io.ReadFull(agent, got)
		check(t, err)
		_, err = agent.Write([]byte("first "))
		check(t, err)
		if rest := readAll(t, agent); len(rest) > 0 {
			t.Fatalf("the agent got %q", rest)
		}
		_, err = agent.Write([]byte("and after the end"))
		check(t, err)
		agent.Close()
		if got := readAll(t, conn); string(got) != "first and after the end" {
			t.Errorf("the client got %q", got)
		}
	})
}
