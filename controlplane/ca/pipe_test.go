package ca

import (
	"crypto/tls"
	"net"
	"testing"
)

// tlsPipe does one handshake and returns how it ended for client and server.
func tlsPipe(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(b, server).Handshake() }()
	c := tls.Client(a, client)
	clientErr = c.Handshake()
	if clientErr != nil {
		a.Close()
	}
	return clientErr, <-done
}
