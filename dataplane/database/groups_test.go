package database

import (
	"crypto/tls"
	"slices"
	"testing"
)

// TestGroups: everything is offered until a server turns out to take a group
// that is not post-quantum, then once in a while; to one that takes a
// post-quantum one, always.
func TestGroups(t *testing.T) {
	for _, row := range []struct {
		name   string
		server tls.CurveID
		share  tls.CurveID // the first of what is offered when not everything is
		full   int         // of 3*relearn handshakes, those that offer everything
	}{
		{"ML-KEM with X25519", tls.X25519MLKEM768, 0, 3 * relearn},
		{"ML-KEM with P-256", tls.SecP256r1MLKEM768, 0, 3 * relearn},
		{"of a later time", 0x9999, 0, 3 * relearn},
		{"X25519", tls.X25519, tls.X25519, 3},
		{"P-256", tls.CurveP256, tls.CurveP256, 3},
		{"P-384", tls.CurveP384, tls.CurveP384, 3},
		{"P-521", tls.CurveP521, tls.CurveP521, 3},
		{"TLS 1.2 with RSA", 0, tls.X25519, 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			var g groups
			full := 0
			for range 3 * relearn {
				curves := g.offer()
				if curves == nil {
					full++
					g.learn(row.server)
					continue
				}
				if curves[0] != row.share || slices.Contains(curves, tls.X25519MLKEM768) {
					t.Fatalf("offers %v", curves)
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
	if g.offer() != nil {
		t.Error("an upgraded server is still taken for an old one")
	}
	g.learn(tls.CurveP256)
	g.forget()
	if g.offer() != nil {
		t.Error("not forgotten")
	}
}
