package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// TestA67_PeerID: who the other end of a control connection is comes from a
// certificate with one name, of TLS 1.3 and of this protocol, whatever the
// configuration of the TLS layer let pass.
func TestA67_PeerID(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		check0(t, err)
		return u
	}
	name := uri("spiffe://" + testCluster + "/agent/" + agentID)
	for what, change := range map[string]func(*tls.ConnectionState){
		"":                 func(*tls.ConnectionState) {},
		"TLS 1.2":          func(cs *tls.ConnectionState) { cs.Version = tls.VersionTLS12 },
		"no protocol":      func(cs *tls.ConnectionState) { cs.NegotiatedProtocol = "" },
		"another protocol": func(cs *tls.ConnectionState) { cs.NegotiatedProtocol = alpn.HTTP2 },
		"no handshake":     func(cs *tls.ConnectionState) { cs.HandshakeComplete = false },
		"no certificate":   func(cs *tls.ConnectionState) { cs.PeerCertificates = nil },
		"no name":          func(cs *tls.ConnectionState) { cs.PeerCertificates[0].URIs = nil },
		"two names":        func(cs *tls.ConnectionState) { cs.PeerCertificates[0].URIs = []*url.URL{name, name} },
		"another kind's": func(cs *tls.ConnectionState) {
			cs.PeerCertificates[0].URIs[0] = uri("spiffe://gw.test/gateway/" + agentID)
		},
		"another cluster's": func(cs *tls.ConnectionState) {
			cs.PeerCertificates[0].URIs[0] = uri("spiffe://other.test/agent/" + agentID)
		},
		"what is no SPIFFE id's": func(cs *tls.ConnectionState) {
			cs.PeerCertificates[0].URIs[0] = uri("https://gw.test/agent/" + agentID)
		},
	} {
		cs := tls.ConnectionState{
			Version: tls.VersionTLS13, NegotiatedProtocol: alpn.Tunnel1, HandshakeComplete: true,
			PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{name}}},
		}
		change(&cs)
		id, err := peerID(cs, sallyport.KindAgent, testCluster)
		if (err == nil) != (what == "") || err == nil && id != agentID {
			t.Errorf("%s: %q, %v", what, id, err)
		}
	}
}

// TestA31_AnswerIsChecked: an agent does not take a data connection for parked on
// the word of somebody who has not its tunnel's key.
func TestA31_AnswerIsChecked(t *testing.T) {
	hello := DataHello{Tunnel: testID, Counter: 7, Answer: true}
	for counter, want := range map[uint64]error{7: nil, 8: ErrForged} {
		near, far := net.Pipe()
		l := &link{keys: keys{agent: testKey, gateway: testKey}}
		said := make(chan error)
		go func() { said <- l.sayHello(near, hello, patience) }()
		b := make([]byte, HelloSize)
		_, err := io.ReadFull(far, b)
		check0(t, err)
		check0(t, VerifyDataHello(b, testKey))
		_, err = far.Write(AppendAnswer(nil, Binding{testID, counter}, testKey))
		check0(t, err)
		if err := receive(t, said); !errors.Is(err, want) {
			t.Errorf("an answer for connection %d to the hello of 7: %v", counter, err)
		}
		near.Close()
		far.Close()
	}
}

// TestA146_AgentsOwnBounds: a gateway that asks for more than an agent gives is
// given that.
func TestA146_AgentsOwnBounds(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	got := make(chan int, 2)
	a := newAgent(ended, AgentConfig{
		AgentID: agentID, MaxPool: 8,
		Cancel: func(_ context.Context, _ uint32, key []byte) { got <- len(key) },
	})

	parked, unpark := context.WithCancel(t.Context())
	l := &link{agent: a, ceiling: 4, parked: parked} // nothing is dialed: there is no slot for it
	for range 2 {
		l.need(100)
		if l.mu.Lock(); l.held != 4 {
			t.Errorf("%d connections were begun, at most 4", l.held)
		}
		l.mu.Unlock()
	}
	unpark()
	a.tasks.Wait()
	if l.held != 0 {
		t.Errorf("%d connections are left", l.held)
	}

	var named []string
	for i := range 2 * maxGateways {
		named = append(named, fmt.Sprintf("gw%d.test:443", i))
	}
	a.dialAll(nil, named)
	if len(a.named) != maxGateways {
		t.Errorf("%d gateways are to be dialed, at most %d", len(a.named), maxGateways)
	}

	for _, size := range []int{maxSecretKey + 1, maxSecretKey} {
		l.pgCancel(&tunnelv1.PgCancel{ProcessId: 1, SecretKey: make([]byte, size)})
	}
	a.tasks.Wait()
	if len(got) != 1 || <-got != maxSecretKey {
		t.Error("a key beyond the bound was passed on, or the longest was not")
	}
}

// TestA146_WelcomeWithinBounds: what a welcome says of pools and times is kept
// within the agent's own bounds.
func TestA146_WelcomeWithinBounds(t *testing.T) {
	ca := newAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	defer ln.Close()
	tc := ca.server(ca.issue(t, sallyport.KindGateway, gatewayID))
	cert := ca.issue(t, sallyport.KindAgent, agentID)
	l := newAgent(t.Context(), AgentConfig{
		AgentID: agentID, Cluster: testCluster, MaxPool: 8,
		TLS: func(string) (*tls.Config, error) { return ca.client(cert), nil },
	}).newLink(ln.Addr().String(), "")
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, tc)
		defer conn.Close()
		if _, err = ReadControl(conn); err == nil {
			w := &tunnelv1.Welcome{GatewayId: gatewayID, TunnelId: testID[:], PoolCeiling: 1 << 20, PingIntervalMs: 1, DeadAfterMs: 1 << 31}
			err = putControl(conn, &tunnelv1.Control{Message: &tunnelv1.Control_Welcome{Welcome: w}}, patience)
		}
		done <- err
	}()
	_ = l.run(t.Context()) // until the gateway has gone, at once
	check0(t, receive(t, done))
	l.agent.tasks.Wait()
	if l.talk == nil {
		t.Fatal("the welcome was refused")
	}
	if l.ceiling != 8 || l.talk.ping != pingTime(1, 0) || l.talk.dead != pingTime(1<<31, 0) {
		t.Errorf("ceiling %d, ping after %v, dead after %v", l.ceiling, l.talk.ping, l.talk.dead)
	}
	if l.talk.ping < pingTime(100, 0) || l.talk.dead > pingTime(60_000, 0) {
		t.Errorf("ping after %v, dead after %v: not within reason", l.talk.ping, l.talk.dead)
	}
}

// TestA146_HubsOwnBounds: how many tunnels there are, and how many names one has.
func TestA146_HubsOwnBounds(t *testing.T) {
	h := NewHub(HubConfig{Verify: verifyAssigned, Bounds: Bounds{Tunnels: 2, Resources: 2}})
	orphan := &tunnel{}
	h.tunnels[ID{1}], h.tunnels[ID{2}], h.orphans[orphan] = orphan, &tunnel{}, true
	check0(t, h.room()) // who waits for its agent keeps no place from it
	h.tunnels[ID{3}] = &tunnel{}
	if err := h.room(); !errors.Is(err, errTooMany) {
		t.Errorf("a third control connection: %v", err)
	}
	_, err := h.examine(assigned(1, "tcp/a", "tcp/b"), agentID)
	check0(t, err)
	if _, err := h.examine(assigned(1, "tcp/a", "tcp/b", "tcp/c"), agentID); !errors.Is(err, errAssignment) {
		t.Errorf("an assignment of three names: %v", err)
	}
}

// TestControlForgetsLarge: the memory of a large message is given back with the
// next one.
func TestControlForgetsLarge(t *testing.T) {
	large := &tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: make([]byte, 8*keepBuffer)}}}
	small := &tunnelv1.Control{Message: &tunnelv1.Control_Ping{Ping: &tunnelv1.Ping{Sequence: 1}}}
	var b []byte
	var err error
	for _, m := range []*tunnelv1.Control{large, small} {
		b, err = AppendControl(b, m)
		check0(t, err)
	}
	c := controlReader{r: bytes.NewReader(b)}
	for range 2 {
		_, err := c.next()
		check0(t, err)
	}
	if c.buf.Cap() > keepBuffer {
		t.Errorf("%d bytes are kept, at most %d", c.buf.Cap(), keepBuffer)
	}
}
