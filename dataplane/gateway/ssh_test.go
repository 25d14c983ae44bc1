//go:build unix

package gateway

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestSSH: what begins as SSH goes to the jump server whole, with the address
// of its client, and holds a stranger's place until it is somebody's.
func TestSSH(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		got := make(chan Stranger)
		next := make(chan struct{})
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.WaitingSource = 2
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			c.SSH = func(ctx context.Context, conn Stranger) {
				got <- conn
				select {
				case <-next:
				case <-ctx.Done():
				}
			}
		})
		const banner = "SSH-2.0-client\r\n"
		for _, head := range []string{"", "PROXY TCP4 192.0.2.7 192.0.2.1 1000 443\r\n"} {
			client := r.say([]byte(head + banner[:2]))
			r.waiting(1)
			_, err := client.Write([]byte(banner[2:]))
			check(t, err)
			conn := <-got
			b := make([]byte, len(banner))
			if _, err := io.ReadFull(conn, b); err != nil || string(b) != banner {
				t.Errorf("the server got %q, %v", b, err)
			}
			if from := conn.RemoteAddr().String(); from != client.LocalAddr().String() && head == "" || from != "192.0.2.7:1000" && head != "" {
				t.Errorf("from %s", from)
			}
			if n := r.Snapshot().Waiting; n != 1 {
				t.Errorf("%d places are held by a stranger", n)
			}
			conn.Proven()
			if n := r.Snapshot().Waiting; n != 0 {
				t.Errorf("%d places are held by somebody", n)
			}
			next <- struct{}{}
			closes(t, client)
		}
		r.reaches(outcomeHandshake, 2)
		var strangers []Stranger
		for range 2 { // the address is known by now, for what came without a header: another one
			r.say([]byte("PROXY TCP4 192.0.2.8 192.0.2.1 1000 443\r\n" + banner))
			strangers = append(strangers, <-got)
		}
		closes(t, r.say([]byte("PROXY TCP4 192.0.2.8 192.0.2.1 1000 443\r\n"+banner)))
		r.reaches(outcomeSourceFull, 1)
		for range strangers {
			next <- struct{}{}
		}
		r.reaches(outcomeHandshakeFailed, 2)
		r.waiting(0)
	})
}

// TestA75_StrangersOfSSH: there is a bound on all of them together, of which a
// part is for sources from which somebody has logged in lately.
func TestA75_StrangersOfSSH(t *testing.T) {
	got, over := make(chan Stranger, 8), make(chan struct{})
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) {
		c.Bounds = generous()
		c.Bounds.WaitingSSH = 4
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.SSH = func(_ context.Context, conn Stranger) {
			got <- conn
			<-over
		}
	})
	from := func(address string) net.Conn {
		return r.say([]byte("PROXY TCP4 " + address + " 192.0.2.1 1000 443\r\nSSH-2.0-x\r\n"))
	}
	from("192.0.2.7")
	(<-got).Proven() // somebody, and no stranger any more
	for _, address := range []string{"192.0.2.8", "192.0.2.9", "192.0.2.10"} {
		from(address)
		<-got
	}
	closes(t, from("192.0.2.11"))
	r.reaches(outcomeGatewayFull, 1)
	from("192.0.2.7")
	<-got
	closes(t, from("192.0.2.7"))
	r.reaches(outcomeGatewayFull, 2)
	close(over)
	r.reaches(outcomeHandshakeFailed, 4)
	from("192.0.2.11")
	<-got
}
