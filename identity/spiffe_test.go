package identity

import (
	"net/url"
	"testing"

	"github.com/sallyport/sallyport"
)

func TestURI(t *testing.T) {
	tests := []struct {
		kind          sallyport.IdentityKind
		cluster, name string
		want          string
	}{
		{sallyport.KindUser, "gw.example.com", "alice", "spiffe://gw.example.com/user/alice"},
		{sallyport.KindUser, "localhost", "alice@example.com", "spiffe://localhost/user/alice@example.com"},
		{sallyport.KindUser, "localhost", "zoë+x", "spiffe://localhost/user/zo%C3%AB+x"},
		{sallyport.KindAgent, "localhost", "0b8d1e8c-0000-4000-8000-000000000001", "spiffe://localhost/agent/0b8d1e8c-0000-4000-8000-000000000001"},
	}
	for _, tt := range tests {
		u := URI(tt.kind, tt.cluster, tt.name)
		if u.String() != tt.want {
			t.Errorf("got %s, want %s", u, tt.want)
		}
		back, err := url.Parse(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		kind, cluster, name, err := ParseURI(back)
		if err != nil || kind != tt.kind || cluster != tt.cluster || name != tt.name {
			t.Errorf("%s: got %s %s %s %v", tt.want, kind, cluster, name, err)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for _, s := range []string{
		"https://gw.test/user/alice",
		"spiffe:gw.test/user/alice",
		"spiffe://gw.test/user/",
		"spiffe://gw.test/user",
		"spiffe://gw.test//alice",
		"spiffe://gw.test/root/alice",
		"spiffe://gw.test/local-admin/0",
		"spiffe://gw.test/user/alice/x",
		"spiffe://gw.test/user/al%2Fice",
		"spiffe://gw.test/user/%61lice",
		"spiffe://gw.test/user/..",
		"spiffe://gw.test/user/alice?x=1",
		"spiffe://gw.test/user/alice?",
		"spiffe://gw.test/user/alice#x",
		"spiffe://gw.test:443/user/alice",
		"spiffe://eve@gw.test/user/alice",
		"spiffe://GW.test/user/alice",
		"spiffe://gw.test./user/alice",
		"spiffe:///user/alice",
		"SPIFFE://gw..test/user/alice",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if kind, cluster, name, err := ParseURI(u); err == nil {
			t.Errorf("%s: taken as %s of %s in %s", s, kind, name, cluster)
		}
	}
}

// FuzzParseURI: an accepted id is the one that URI writes.
func FuzzParseURI(f *testing.F) {
	f.Add("spiffe://gw.example.com/user/alice@example.com")
	f.Add("spiffe://localhost/agent/%C3%AB")
	f.Fuzz(func(t *testing.T, s string) {
		kind, cluster, name, err := parse(s)
		if err != nil {
			return
		}
		if got := URI(kind, cluster, name).String(); got != s {
			t.Fatalf("%q is written %q", s, got)
		}
	})
}
