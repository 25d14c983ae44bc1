package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// stubServer speaks as much of PostgreSQL's protocol as a session's set-up
// needs, behind TLS with client certificates as the real server asks for them:
// what a session costs with it is the gateway's and the agent's part.
type stubServer struct {
	listener net.Listener
	config   *tls.Config
	slots    chan struct{}
	serving  sync.WaitGroup
}

const (
	stubSessions = 256
	stubSession  = 30 * time.Second
)

func startStub(c credentials) (*stubServer, error) {
	cert, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.clientCAs) {
		return nil, errors.New("no certificate of a client CA")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stubServer{
		listener: l, slots: make(chan struct{}, stubSessions),
		config: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true},
	}
	s.serving.Add(1)
	go s.accept()
	return s, nil
}

func (s *stubServer) addr() string { return s.listener.Addr().String() }

func (s *stubServer) accept() {
	defer s.serving.Done()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		s.slots <- struct{}{}
		s.serving.Add(1)
		go s.session(conn)
	}
}

func (s *stubServer) session(conn net.Conn) {
	defer s.serving.Done()
	defer func() { <-s.slots }()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(stubSession))
	_ = s.speak(conn) // the client sees how it ended
}

// speak follows "Start-up" and "SSL Session Encryption" of PostgreSQL's
// protocol, then takes queries as empty ones until Terminate.
func (s *stubServer) speak(conn net.Conn) error {
	first, err := pgproto3.NewBackend(conn, conn).ReceiveStartupMessage()
	if err != nil {
		return err
	}
	if _, ok := first.(*pgproto3.SSLRequest); !ok {
		return errors.New("no SSLRequest")
	}
	if _, err := conn.Write([]byte{'S'}); err != nil {
		return err
	}
	inner := tls.Server(conn, s.config)
	b := pgproto3.NewBackend(inner, inner)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationOk{})
	for _, p := range [][2]string{{"server_version", "15.0"}, {"server_encoding", "UTF8"}, {"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"},
		{"TimeZone", "UTC"}, {"integer_datetimes", "on"}, {"standard_conforming_strings", "on"}} {
		b.Send(&pgproto3.ParameterStatus{Name: p[0], Value: p[1]})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := b.Flush(); err != nil {
		return err
	}
	return answer(b)
}

func answer(b *pgproto3.Backend) error {
	for {
		m, err := b.Receive()
		if err != nil {
			return err
		}
		switch m.(type) {
		case *pgproto3.Terminate:
			return nil
		case *pgproto3.Query:
			b.Send(&pgproto3.EmptyQueryResponse{})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		default:
			return errors.New("only simple queries are answered")
		}
		if err := b.Flush(); err != nil {
			return err
		}
	}
}

// close ends the listener and waits for the sessions, which are short.
func (s *stubServer) close() {
	if s == nil {
		return
	}
	s.listener.Close()
	s.serving.Wait()
}
