package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestOpenEndsWithTunnel: a data connection that failed just as its tunnel ended was
// closed when it was none any more: the agent's process ended.
func TestOpenEndsWithTunnel(t *testing.T) {
	for range 300 {
		parked, end := context.WithCancel(t.Context())
		a := newAgent(t.Context(), AgentConfig{Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				go end()
				far.Close()
			}()
			return near, nil
		}})
		l := &link{agent: a, parked: parked, data: "192.0.2.1:443", addr: "192.0.2.1:443"}
		if conn, _, err := l.openBy(CarrierTCP, false); err == nil {
			conn.Close()
		}
		end()
	}
}

// TestReach: the control connection goes inside a WebSocket where something on the way
// ends TLS, or lets only the web's through, and not for one handshake that has failed:
// it stayed there for an hour, and longer.
func TestReach(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		for _, row := range []struct {
			name string
			pass func(n int32, hello []byte) bool
			want string // what the middlebox has let through, by what was asked for
		}{
			{"the first ends early", func(n int32, _ []byte) bool { return n > 1 }, alpn.Tunnel1},
			{"only the web's", func(_ int32, hello []byte) bool { return bytes.Contains(hello, []byte(alpn.HTTP11)) }, alpn.HTTP11},
		} {
			t.Run(row.name, func(t *testing.T) {
				ca := newAuthority(t)
				g := startGateway(t, ca, loops, func(c *HubConfig) {
					c.DataAddress, c.Loops, c.Bounds = "", loops, Bounds{LeaseWait: patience, PoolFloor: 1}
				})
				var met atomic.Int32
				through := make(chan []byte, 100)
				_, addr := startMiddlebox(t, onePort(t, g), "all", func(m *middlebox) {
					m.meet = func(kind string, c net.Conn, first []byte) ([]byte, bool) {
						if kind != "tls" {
							return first, true
						}
						read := make([]byte, 5+1<<14)
						copy(read, first)
						if _, err := io.ReadFull(c, read[4:5]); err != nil {
							return nil, false
						}
						read = read[:5+binary.BigEndian.Uint16(read[3:5])]
						if _, err := io.ReadFull(c, read[5:]); err != nil || !row.pass(met.Add(1), read) {
							return nil, false
						}
						through <- read
						return read, true
					}
				})
				startAgent(t, ca, []string{addr}, func(c *AgentConfig) { c.Serve = echoHalf })
				g.come(t)
				conform(t, g)
				for len(through) > 0 {
					hello := <-through
					if len(through) == 0 && !bytes.Contains(hello, []byte(row.want)) { // the last is the tunnel's
						t.Errorf("the control connection asked for another protocol than %s", row.want)
					}
				}
			})
		}
	})
}

// TestFasterAgain: after one answer that was late a tunnel comes back from the slower
// carrier, and one that has to stay there loses no client by the tries.
func TestFasterAgain(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) {
			c.DataAddress, c.Loops = "", loops
			c.Bounds = Bounds{HalfOpenSource: 1000, SourceRate: 100000, LeaseWait: patience, PoolFloor: 4}
		})
		var late atomic.Bool
		late.Store(true)
		_, addr := startMiddlebox(t, onePort(t, g), "all", func(m *middlebox) {
			m.meet = func(kind string, c net.Conn, first []byte) ([]byte, bool) {
				if kind == "data" && late.Load() {
					_, _ = io.Copy(io.Discard, c)
					return nil, false
				}
				return first, true
			}
		})
		startAgent(t, ca, []string{addr}, func(c *AgentConfig) {
			c.Serve, c.fasterEvery = echoHalf, time.Millisecond
			c.answerWait = func(by Carrier) time.Duration {
				if by == CarrierTCP && late.Load() {
					return 20 * time.Millisecond
				}
				return patience
			}
		})
		g.come(t)
		carrier := func() string { return g.hub.Status().Tunnels[0].Carrier }
		eventually(t, "parked", func() bool { return g.hub.Status().Tunnels[0].Parked >= 4 })
		conform(t, g)
		if by := carrier(); by != string(CarrierTLS) {
			t.Fatalf("with late answers by %q", by)
		}
		late.Store(false)
		eventually(t, "the faster carrier", func() bool {
			conform(t, g)
			return carrier() == string(CarrierTCP)
		})
	})
}

// TestRenewal: a tunnel whose certificates end soon makes room for one with newer ones,
// and no client notices. It ended with them, and nothing led to the agent until it came
// again; with all its gateways at the same moment.
func TestRenewal(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) {
			c.Bounds = Bounds{HalfOpenSource: 1000, SourceRate: 100000, LeaseWait: patience, PoolFloor: 4}
		})
		var asked atomic.Int32
		startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
			c.renewal = func(now, until time.Time) time.Time {
				if asked.Add(1) > 3 {
					return until
				}
				return now
			}
		})
		g.come(t)
		eventually(t, "three renewals", func() bool {
			if !g.hub.Live("tcp", "echo") {
				t.Error("nothing leads to the agent")
			}
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Errorf("no lease: %s", o.reason)
				return true
			}
			c := clientConn(t, o.lease)
			if got := ask(t, c, "hello"); got != "hello" {
				t.Errorf("answer %q", got)
			}
			c.Close()
			o.lease.Ended()
			return g.hub.Status().Counters["replaced"] == 3
		})
		select {
		case p := <-g.presence:
			if !p.Up {
				t.Error("the agent was reported to be away")
			}
		default:
		}
	})
}

func TestRenewalTime(t *testing.T) {
	now := time.Now()
	for _, life := range []time.Duration{7 * 24 * time.Hour, time.Hour, time.Minute, 1, 0, -time.Hour} {
		until := now.Add(life)
		for range 100 {
			switch at := renewal(now, until); {
			case life < time.Second && !at.After(until), !at.Before(now.Add(3*life/4)) && !at.After(now.Add(7*life/8)):
			default:
				t.Errorf("of %s after %s", life, at.Sub(now))
			}
		}
	}
}

func TestCertificateEnd(t *testing.T) {
	c := newAuthority(t).issue(t, sallyport.KindAgent, agentID)
	want, err := x509.ParseCertificate(c.Certificate[0])
	check0(t, err)
	for _, cfg := range []*tls.Config{
		{Certificates: []tls.Certificate{c}},
		{Certificates: []tls.Certificate{{Leaf: want}}},
	} {
		if got := certificateEnd(cfg); !got.Equal(want.NotAfter) {
			t.Errorf("%s, not %s", got, want.NotAfter)
		}
	}
	if got := certificateEnd(new(tls.Config)); !got.IsZero() {
		t.Errorf("of none: %s", got)
	}
}

// TestTurnedAway: what an agent that is turned away meets is told from a gateway that is
// not there, or goes: it is tried again every two seconds, and the other less and less often.
func TestTurnedAway(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca, other := newAuthority(t), newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) {
			c.Verify = func(raw []byte, agent string) (Assignment, error) {
				if string(raw) == "bad" {
					return Assignment{}, errors.New("bad")
				}
				return verifyAssigned(raw, agent)
			}
		})
		good, foreign := ca.client(ca.issue(t, sallyport.KindAgent, agentID)), ca.client(other.issue(t, sallyport.KindAgent, agentID))
		distrusting := other.client(ca.issue(t, sallyport.KindAgent, agentID))
		try := func(cfg *tls.Config, assignment string, to string) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a := newAgent(ctx, AgentConfig{AgentID: agentID, Cluster: testCluster, Carriers: []Carrier{CarrierTCP}, TLS: func(string) (*tls.Config, error) { return cfg, nil }})
			a.assignment = []byte(assignment)
			l := a.newLink(to, "")
			conn, err := l.connect(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = l.greet(ctx, conn)
			return err
		}
		away := listenerAt(t)
		at := g.control.Addr().String()
		for name, row := range map[string]struct {
			err  error
			want bool
		}{
			"welcome":                  {try(good, "1 tcp/echo", at), false},
			"another CA's certificate": {try(foreign, "1 tcp/echo", at), true},
			"another CA's gateway":     {try(distrusting, "1 tcp/echo", at), true},
			"a bad assignment":         {try(good, "bad", at), true},
			"nobody there":             {try(good, "1 tcp/echo", away), false},
			"going":                    {&goodbyeError{byeReason(errDrained)}, false},
			"gone":                     {&goodbyeError{byeReason(context.Canceled)}, false},
			"not ready":                {&net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}, false},
		} {
			if foreign := name == "another CA's gateway"; isForeign(row.err) != foreign || (mostPause(row.err) > refusedPause) != foreign {
				t.Errorf("%s: for at most %s, after %v", name, mostPause(row.err), row.err)
			}
			if (row.err == nil) != (name == "welcome") || turnedAway(row.err) != row.want {
				t.Errorf("%s: turned away: %v, by %v", name, turnedAway(row.err), row.err)
			}
		}
	})
}

// listenerAt is an address at which nobody listens.
func listenerAt(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	check0(t, l.Close())
	return l.Addr().String()
}

// TestRest: a long pause ends with a new certificate, or a new assignment.
func TestRest(t *testing.T) {
	ca := newAuthority(t)
	certs := []tls.Certificate{ca.issue(t, sallyport.KindAgent, agentID), ca.issue(t, sallyport.KindAgent, agentID)}
	for i := range certs {
		leaf, err := x509.ParseCertificate(certs[i].Certificate[0])
		check0(t, err)
		leaf.NotAfter = leaf.NotAfter.Add(time.Duration(i) * time.Hour)
		certs[i].Leaf = leaf
	}
	for _, row := range []struct {
		name   string
		change func(a *agent, now *atomic.Int32)
		least  time.Duration
		most   time.Duration
	}{
		{"nothing", func(*agent, *atomic.Int32) {}, refusedPause, refusedPause},
		{"a certificate", func(_ *agent, now *atomic.Int32) { now.Store(1) }, 5 * time.Second, 5*time.Second + longestPause},
		{"an assignment", func(a *agent, _ *atomic.Int32) { a.setAssignment([]byte("2")) }, 5 * time.Second, 5 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Int32
				a := newAgent(t.Context(), AgentConfig{TLS: func(string) (*tls.Config, error) { return ca.client(certs[now.Load()]), nil }})
				l := a.newLink("192.0.2.1:443", "")
				l.ends = certs[0].Leaf.NotAfter
				time.AfterFunc(5*time.Second, func() { row.change(a, &now) })
				begun := time.Now()
				if !a.rest(refusedPause, l) {
					t.Error("the end")
				}
				if took := time.Since(begun); took < row.least || took > row.most {
					t.Errorf("after %s", took)
				}
			})
		})
	}
}
