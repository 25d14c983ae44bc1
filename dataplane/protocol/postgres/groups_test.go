package postgres

import (
	"crypto/tls"
	"slices"
	"testing"
)

// TestGroups: the post-quantum group is offered until a server turns out not to
// know it, then once in a while; to one that knows it, always.
func TestGroups(t *testing.T) {
	for _, row := range []struct {
		name   string
		server tls.CurveID
		full   int // of 3*relearn handshakes, those that offer everything
	}{
		{"knows it", tls.X25519MLKEM768, 3 * relearn},
		{"does not", tls.X25519, 3},
		{"TLS 1.2 with RSA", 0, 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			var g groups
			full := 0
			for range 3 * relearn {
				curves, learn := g.offer()
				if learn != (curves == nil) || slices.Contains(curves, tls.X25519MLKEM768) {
					t.Fatalf("offers %v, learns %v", curves, learn)
				}
				if learn {
					full++
					g.learn(row.server)
				}
			}
			if full != row.full {
				t.Errorf("%d handshakes offered everything, want %d", full, row.full)
			}
		})
	}
	var g groups
	g.learn(tls.X25519)
	g.learn(tls.X25519MLKEM768) // upgraded meanwhile
	if _, learn := g.offer(); !learn {
		t.Error("an upgraded server is still taken for an old one")
	}
}
