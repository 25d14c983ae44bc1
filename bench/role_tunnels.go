package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/bench/flow"
)

// ending is what the far end of a tunnel needs to end its clients' TLS.
type ending struct {
	Routes []flow.Route `json:"routes"`
	Cert   string       `json:"cert"` // files
	Key    string       `json:"key"`
	CAs    string       `json:"cas"` // of clients
}

// ender ends TLS and passes on what is in it, by the name asked for.
type ender struct {
	config *tls.Config
	to     map[string]string
}

func newEnder(arg string) (*ender, error) {
	var e ending
	if err := json.Unmarshal([]byte(arg), &e); err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(e.Cert, e.Key)
	if err != nil {
		return nil, err
	}
	cas, err := os.ReadFile(e.CAs)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cas) {
		return nil, errors.New("no certificate of a client CA")
	}
	out := &ender{to: map[string]string{}, config: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}}
	for _, r := range e.Routes {
		out.to[r.Name] = r.Address
	}
	return out, nil
}

// serve owns conn.
func (e *ender) serve(conn net.Conn) {
	defer conn.Close()
	client := tls.Server(conn, e.config)
	conn.SetDeadline(time.Now().Add(upWait))
	if client.Handshake() != nil {
		return
	}
	conn.SetDeadline(time.Time{}) // as such a proxy does
	c, err := net.Dial("tcp", e.to[client.ConnectionState().ServerName])
	if err != nil {
		return
	}
	defer c.Close()
	join(client, c.(*net.TCPConn))
}

// halfCloser is a stream whose halves end separately.
type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// join copies both ways until both have ended.
func join(a, b halfCloser) {
	var back sync.WaitGroup
	back.Go(func() { copyHalf(a, b) })
	copyHalf(b, a)
	back.Wait()
}

func copyHalf(to, from halfCloser) {
	_, _ = io.Copy(to, from) // how it ended shows at the other end
	to.CloseWrite()
}

// listenUntil accepts until ctx is done. What it serves ends with its
// connection, at the latest with the process.
func listenUntil(ctx context.Context, addr string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: the next may find one
			continue
		}
		go serve(conn)
	}
}

// forwarded is the type of channels for forwarded connections (RFC 4254,
// section 7.2).
const forwarded = "forwarded-tcpip"

// sshGateway is the public end of a tunnel as OpenSSH's remote forwarding is
// one: each client's connection is a channel of the one connection that the
// agent has opened.
func sshGateway(ctx context.Context, listen, agents string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	// Both ends are of this run, on the loopback: who they are is not measured.
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(signer)
	agent, err := acceptAgent(ctx, agents, cfg)
	if err != nil {
		return err
	}
	defer agent.Close()
	return listenUntil(ctx, listen, func(client net.Conn) { forward(agent, client.(*net.TCPConn)) })
}

// acceptAgent returns the first connection that speaks SSH.
func acceptAgent(ctx context.Context, addr string, cfg *ssh.ServerConfig) (ssh.Conn, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil, err
		}
		conn.SetDeadline(time.Now().Add(upWait))
		agent, chans, reqs, err := ssh.NewServerConn(conn, cfg)
		if err != nil {
			conn.Close() // somebody looked whether we listen
			continue
		}
		conn.SetDeadline(time.Time{}) // the tunnel lasts as long as both ends
		go ssh.DiscardRequests(reqs)
		go refuseChannels(chans)
		return agent, nil
	}
}

func refuseChannels(chans <-chan ssh.NewChannel) {
	for c := range chans {
		c.Reject(ssh.Prohibited, "only this end opens channels")
	}
}

// forward owns client.
func forward(agent ssh.Conn, client *net.TCPConn) {
	defer client.Close()
	from, to := client.RemoteAddr().(*net.TCPAddr), client.LocalAddr().(*net.TCPAddr)
	ch, reqs, err := agent.OpenChannel(forwarded, ssh.Marshal(struct {
		Address    string
		Port       uint32
		OriginAddr string
		OriginPort uint32
	}{to.IP.String(), uint32(to.Port), from.IP.String(), uint32(from.Port)}))
	if err != nil {
		return
	}
	defer ch.Close()
	go ssh.DiscardRequests(reqs)
	join(ch, client)
}

// sshAgent is the far end: it ends the clients' TLS.
func sshAgent(ctx context.Context, gateway string, e *ender) error {
	conn, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, chans, reqs, err := ssh.NewClientConn(conn, gateway, &ssh.ClientConfig{User: person, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		return err
	}
	defer c.Close()
	go ssh.DiscardRequests(reqs)
	for open := range chans {
		if open.ChannelType() != forwarded {
			open.Reject(ssh.UnknownChannelType, "only forwarded connections")
			continue
		}
		ch, reqs, err := open.Accept()
		if err != nil {
			return err
		}
		go ssh.DiscardRequests(reqs)
		go e.serve(channelConn{Channel: ch, conn: conn})
	}
	return nil
}

// channelConn is a channel as a net.Conn, without deadlines.
type channelConn struct {
	ssh.Channel
	conn net.Conn
}

func (c channelConn) LocalAddr() net.Addr              { return c.conn.LocalAddr() }
func (c channelConn) RemoteAddr() net.Addr             { return c.conn.RemoteAddr() }
func (c channelConn) SetDeadline(time.Time) error      { return nil }
func (c channelConn) SetReadDeadline(time.Time) error  { return nil }
func (c channelConn) SetWriteDeadline(time.Time) error { return nil }
