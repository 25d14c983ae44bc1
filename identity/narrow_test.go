package identity

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// within says in which way b has a right that a has not; "" when in none. It is
// written apart from Narrower, by meaning and not by construction.
func within(a, b sallyport.Identity) string {
	subset := func(x, y []string) bool {
		return !slices.ContainsFunc(y, func(s string) bool { return !slices.Contains(x, s) })
	}
	switch {
	case a.Kind != b.Kind || a.Name != b.Name || a.Cluster != b.Cluster:
		return "another holder"
	case !subset(a.Roles, b.Roles):
		return "roles"
	case !subset(a.Principals, b.Principals):
		return "principals"
	case a.MFA != b.MFA:
		return "mfa"
	case a.PinnedAddr != "" && a.PinnedAddr != b.PinnedAddr:
		return "pinned address"
	case len(a.AllowedResources) > 0 && (len(b.AllowedResources) == 0 || !subset(a.AllowedResources, b.AllowedResources)):
		return "resources"
	case !slices.Equal(a.ActiveRequests, b.ActiveRequests):
		return "requests"
	case a.Usage != "" && a.Usage != b.Usage, a.BoundTo != "" && a.BoundTo != b.BoundTo:
		return "usage"
	case a.DisallowReissue:
		return "re-issue"
	case b.Generation < a.Generation:
		return "generation"
	case b.NotAfter.After(a.NotAfter):
		return "expiry"
	case b.NotBefore.Before(a.NotBefore):
		return "begin"
	}
	for name, values := range b.Traits {
		if have, in := a.Traits[name]; !in || !subset(have, values) {
			return "trait " + name
		}
	}
	return ""
}

// TestA04_ReissueOnlyNarrows: every restriction survives a re-issue, and no
// right is added, whatever the control plane wants to give.
func TestA04_ReissueOnlyNarrows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for range 20000 {
		have, wanted := some(r), some(r)
		out, err := Narrower(have, wanted)
		if err != nil {
			continue
		}
		allowed++
		if fault := within(have, out); fault != "" {
			t.Fatalf("%s: more than before\nhave   %+v\nwanted %+v\nout    %+v", fault, have, wanted, out)
		}
		if out.Serial != "" || out.Fingerprint != "" {
			t.Fatal("facts of the old certificate survive")
		}
		// What the control plane no longer gives is gone as well.
		withMFA := wanted
		withMFA.MFA, withMFA.ActiveRequests, withMFA.DisallowReissue = have.MFA, have.ActiveRequests, false
		if fault := within(withMFA, out); fault != "" {
			t.Fatalf("%s: more than the control plane gives\nhave   %+v\nwanted %+v\nout    %+v", fault, have, wanted, out)
		}
		// Once more changes nothing.
		if out.DisallowReissue {
			continue
		}
		again, err := Narrower(out, wanted)
		if err != nil || within(out, again) != "" || within(again, out) != "" {
			t.Fatalf("not stable: %v\n%+v\n%+v", err, out, again)
		}
	}
	if allowed < 1000 {
		t.Fatalf("only %d of the pairs tested anything", allowed)
	}
}

func some(r *rand.Rand) sallyport.Identity {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	list := func() (out []string) {
		for _, s := range []string{"a", "b", "c"} {
			if r.IntN(2) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	id := sallyport.Identity{
		Kind: sallyport.KindUser, Name: pick("alice", "alice", "alice", "eve"), Cluster: "localhost",
		Roles: list(), Principals: list(), MFA: pick("", "m1", "m2"),
		PinnedAddr: pick("", "", "192.0.2.1", "192.0.2.2"), LoginAddr: pick("", "192.0.2.1"),
		AllowedResources: list(), ActiveRequests: list(),
		DisallowReissue: r.IntN(8) == 0, Generation: uint64(r.IntN(4)),
		Serial: "1", Fingerprint: "f",
		NotBefore: now.Add(time.Duration(r.IntN(3)) * time.Minute),
		NotAfter:  now.Add(time.Duration(r.IntN(60)) * time.Minute),
	}
	for _, t := range list() {
		if id.Traits == nil {
			id.Traits = map[string][]string{}
		}
		id.Traits[t] = list()
	}
	if r.IntN(4) == 0 {
		id.Usage, id.BoundTo = sallyport.UsageWeb, "spiffe://localhost/gateway/"+pick("1", "1", "2")
	}
	return id
}

// TestNothingIsNotEverything: an empty list of resources means all of them, so
// two lists without a common member must not become one.
func TestNothingIsNotEverything(t *testing.T) {
	have, wanted := plain(), plain()
	have.NotBefore, have.NotAfter = now, now.Add(time.Hour)
	have.AllowedResources, wanted.AllowedResources = []string{"/c/db/a"}, []string{"/c/db/b"}
	if out, err := Narrower(have, wanted); err == nil {
		t.Errorf("allowed for %v", out.AllowedResources)
	}
}
