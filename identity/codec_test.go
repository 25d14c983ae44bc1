package identity

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport"
	"google.golang.org/protobuf/encoding/protowire"
)

func alice() sallyport.Identity {
	return sallyport.Identity{
		Kind: sallyport.KindUser, Name: "alice@example.com", Cluster: "gw.example.com",
		Roles:            []string{"dev", "access"},
		Traits:           map[string][]string{"logins": {"root", "alice"}, "empty": nil, "team": {""}},
		Principals:       []string{"root", "alice"},
		MFA:              "device-1",
		PinnedAddr:       "192.0.2.7",
		LoginAddr:        "2001:db8::1",
		AllowedResources: []string{"/gw.example.com/db/orders"},
		ActiveRequests:   []string{"req-1"},
		Usage:            sallyport.UsageWeb,
		BoundTo:          "spiffe://gw.example.com/gateway/9d6c",
		DisallowReissue:  true,
		Generation:       1 << 60,
	}
}

func plain() sallyport.Identity {
	return sallyport.Identity{Kind: sallyport.KindUser, Name: "bob", Cluster: "localhost"}
}

func TestRoundTrip(t *testing.T) {
	for _, id := range []sallyport.Identity{alice(), plain()} {
		b, err := encode(id)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := encode(id)
		if !bytes.Equal(b, again) {
			t.Error("two encodings of one identity differ")
		}
		got, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(id, got); diff != "" {
			t.Error(diff)
		}
	}
}

// TestEveryFieldTravels fails when a field is added to sallyport.Identity and
// the codec forgets it: what is not in the message would be lost at re-issue.
func TestEveryFieldTravels(t *testing.T) {
	id := alice()
	id.Serial, id.Fingerprint = "1", "2"
	b, err := encode(id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	got.Serial, got.Fingerprint, got.NotBefore, got.NotAfter = "1", "2", id.NotBefore, id.NotAfter
	if diff := cmp.Diff(id, got); diff != "" {
		t.Error(diff)
	}
}

func TestVersionsMix(t *testing.T) {
	base, err := encode(plain())
	if err != nil {
		t.Fatal(err)
	}
	with := func(n protowire.Number) []byte {
		b := protowire.AppendTag(bytes.Clone(base), n, protowire.BytesType)
		return protowire.AppendString(b, "news")
	}
	traitWith := func(n protowire.Number) []byte {
		trait := appendString(nil, traitName, "team")
		trait = appendString(trait, n, "news")
		b := protowire.AppendTag(bytes.Clone(base), fieldTraits, protowire.BytesType)
		return protowire.AppendBytes(b, trait)
	}
	tests := []struct {
		name string
		in   []byte
		ok   bool
	}{
		{"unknown fact", with(16), true},
		{"last skipped number", with(1023), true},
		{"first critical number", with(1024), false},
		{"critical", with(100000), false},
		{"unknown fact in a trait", traitWith(3), true},
		{"critical in a trait", traitWith(1024), false},
	}
	for _, tt := range tests {
		if _, err := decode(tt.in); (err == nil) != tt.ok {
			t.Errorf("%s: error %v, want accepted %v", tt.name, err, tt.ok)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := map[string]func(*sallyport.Identity){
		"no name":               func(id *sallyport.Identity) { id.Name = "" },
		"name with slash":       func(id *sallyport.Identity) { id.Name = "a/b" },
		"name of dots":          func(id *sallyport.Identity) { id.Name = ".." },
		"name with newline":     func(id *sallyport.Identity) { id.Name = "a\nb" },
		"name too long":         func(id *sallyport.Identity) { id.Name = strings.Repeat("a", 256) },
		"kind local-admin":      func(id *sallyport.Identity) { id.Kind = sallyport.KindLocalAdmin },
		"no kind":               func(id *sallyport.Identity) { id.Kind = "" },
		"cluster in upper case": func(id *sallyport.Identity) { id.Cluster = "GW" },
		"cluster with port":     func(id *sallyport.Identity) { id.Cluster = "gw:443" },
		"no cluster":            func(id *sallyport.Identity) { id.Cluster = "" },
		"empty role":            func(id *sallyport.Identity) { id.Roles = []string{""} },
		"role with NUL":         func(id *sallyport.Identity) { id.Roles = []string{"a\x00"} },
		"role not UTF-8":        func(id *sallyport.Identity) { id.Roles = []string{"\xff"} },
		"too many roles":        func(id *sallyport.Identity) { id.Roles = many(maxRoles + 1) },
		"too many principals":   func(id *sallyport.Identity) { id.Principals = many(maxPrincipals + 1) },
		"too many requests":     func(id *sallyport.Identity) { id.ActiveRequests = many(maxRequests + 1) },
		"too many values": func(id *sallyport.Identity) {
			id.Traits = map[string][]string{"a": many(maxTraitValues), "b": {"x"}}
		},
		"trait without name":    func(id *sallyport.Identity) { id.Traits = map[string][]string{"": {"x"}} },
		"trait with escape":     func(id *sallyport.Identity) { id.Traits = map[string][]string{"a": {"\x1b[2J"}} },
		"long string":           func(id *sallyport.Identity) { id.MFA = strings.Repeat("m", maxString+1) },
		"pin is no address":     func(id *sallyport.Identity) { id.PinnedAddr = "everywhere" },
		"pin in long form":      func(id *sallyport.Identity) { id.PinnedAddr = "2001:0db8::0001" },
		"pin with zone":         func(id *sallyport.Identity) { id.PinnedAddr = "fe80::1%eth0" },
		"pin 4 in 6":            func(id *sallyport.Identity) { id.PinnedAddr = "::ffff:192.0.2.1" },
		"resource without kind": func(id *sallyport.Identity) { id.AllowedResources = []string{"/c/db"} },
		"unknown usage":         func(id *sallyport.Identity) { id.Usage = "play" },
		"web without gateway":   func(id *sallyport.Identity) { id.BoundTo = "" },
		"web for a user":        func(id *sallyport.Identity) { id.BoundTo = "spiffe://gw.example.com/user/eve" },
		"web of other cluster":  func(id *sallyport.Identity) { id.BoundTo = "spiffe://other/gateway/1" },
		"bound without usage":   func(id *sallyport.Identity) { id.Usage = "" },
		"together too large": func(id *sallyport.Identity) {
			id.Traits = map[string][]string{"a": {strings.Repeat("x", maxString)}}
			for i := range 17 {
				id.Traits[strings.Repeat("t", i+1)] = id.Traits["a"]
			}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			id := alice()
			change(&id)
			if b, err := encode(id); err == nil {
				t.Errorf("encoded to %d bytes", len(b))
			}
		})
	}
}

func TestMalformed(t *testing.T) {
	base, err := encode(alice())
	if err != nil {
		t.Fatal(err)
	}
	after := func(tail ...byte) []byte { return append(bytes.Clone(base), tail...) }
	tests := map[string][]byte{
		"empty":              {},
		"cut":                base[:len(base)-1],
		"second name":        appendString(bytes.Clone(base), fieldName, "root"),
		"second generation":  appendUint(bytes.Clone(base), fieldGeneration, 1),
		"trait twice":        append(bytes.Clone(base), base[bytes.Index(base, []byte("\x2a\x07\x0a\x05empty")):][:9]...),
		"name as number":     after(0x10, 1),
		"generation as text": after(0x7a, 1, 'x'),
		"truth of two":       protowire.AppendVarint(protowire.AppendTag(nil, fieldDisallowReissue, protowire.VarintType), 2),
		"length beyond end":  after(0x22, 0xff, 0xff, 0xff, 0xff, 0x07),
		"field zero":         after(0x02, 0x00),
		"end of no group":    after(0x84, 0x01),
		"too large":          appendString(bytes.Clone(base), 16, strings.Repeat("x", MaxEncoded)),
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			if id, err := decode(in); err == nil {
				t.Errorf("decoded as %+v", id)
			}
		})
	}
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = "x"
	}
	return out
}

// FuzzDecode: what is accepted can be written, within the limits, and comes
// back the same.
func FuzzDecode(f *testing.F) {
	for _, id := range []sallyport.Identity{alice(), plain()} {
		b, err := encode(id)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		id, err := decode(in)
		if err != nil {
			return
		}
		b, err := encode(id)
		if err != nil {
			t.Fatalf("accepted and not writable: %v", err)
		}
		again, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(id, again); diff != "" {
			t.Fatal(diff)
		}
	})
}
