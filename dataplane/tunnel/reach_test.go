package tunnel

import (
	"context"
	"net"
	"testing"
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
