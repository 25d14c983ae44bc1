package access

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
)

// strictMaxAge is how old a view of the locks may be for roles whose locks are
// strict.
const strictMaxAge = 5 * time.Minute

// Admit meets session.Gate: is this user, at this address, one to talk to?
func (d *Door) Admit(id sallyport.Identity, addr netip.AddrPort) *sallyport.Problem {
	d.setUp()
	trust, err := d.Snapshot.Trust()
	if trust == nil || err != nil {
		return staleProblem(err)
	}
	now := d.Now()
	if p := checkHolder(id, trust, d.Cluster); p != nil {
		return p
	}
	if p := checkTime(id, now); p != nil {
		return p
	}
	if p := checkPin(id, addr); p != nil {
		return p
	}
	return d.locked(trust, subject{id: id})
}

func staleProblem(err error) *sallyport.Problem {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p
	}
	return &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth yet", Cause: err,
		Hint: "try again in a minute"}
}

func checkHolder(id sallyport.Identity, trust *sallyport.Trust, cluster string) *sallyport.Problem {
	if id.Kind != sallyport.KindUser {
		return sallyport.Denied("this certificate does not name a user", "")
	}
	if id.Cluster != cluster || trust.Cluster != cluster {
		return sallyport.Denied("this certificate is of another cluster", "log in with: sally login")
	}
	return nil
}

func checkTime(id sallyport.Identity, now time.Time) *sallyport.Problem {
	if !now.Before(id.NotAfter) {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "your certificate expired at " + stamp(id.NotAfter),
			Hint: "log in with: sally login"}
	}
	if now.Before(id.NotBefore) {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "your certificate is not valid before " + stamp(id.NotBefore),
			Hint: "compare the clocks of the hosts"}
	}
	return nil
}

// checkPin compares addresses, not spellings. An unknown address is no match.
func checkPin(id sallyport.Identity, addr netip.AddrPort) *sallyport.Problem {
	if id.PinnedAddr == "" {
		return nil
	}
	pin, err := netip.ParseAddr(id.PinnedAddr)
	if err == nil && addr.IsValid() && pin.Unmap() == addr.Addr().Unmap().WithZone("") {
		return nil
	}
	return sallyport.Denied("your certificate is bound to another address", "log in from here with: sally login")
}

// subject is what a lock may name.
type subject struct {
	id       sallyport.Identity
	login    string // "" while it is not known
	resource sallyport.Resource
}

// locked returns the refusal by the first lock in force, or nil.
func (d *Door) locked(trust *sallyport.Trust, s subject) *sallyport.Problem {
	now := d.Now().Unix()
	for _, l := range trust.Locks {
		if l.Expires != 0 && l.Expires <= now || !d.hits(l.Target, s) {
			continue
		}
		fact := "lock targeting " + describe(l.Target) + " is in force"
		if l.Message != "" {
			fact += ": " + l.Message
		}
		return sallyport.Denied(fact, "ask your administrator")
	}
	return nil
}

// hits says that every field that the target sets matches the subject.
func (d *Door) hits(t sallyport.LockTarget, s subject) bool {
	if t == (sallyport.LockTarget{}) {
		return false
	}
	return (t.User == "" || t.User == s.id.Name) &&
		(t.Role == "" || slices.Contains(s.id.Roles, t.Role)) &&
		(t.Login == "" || t.Login == s.login) &&
		(t.ServerID == "" || t.ServerID == d.AgentID || t.ServerID == s.resource.ID) &&
		(t.MFA == "" || t.MFA == s.id.MFA) &&
		(t.Request == "" || slices.Contains(s.id.ActiveRequests, t.Request))
}

// describe names a target the way people know it from the lock.
func describe(t sallyport.LockTarget) string {
	for _, f := range []struct{ name, value string }{
		{"User", t.User}, {"Role", t.Role}, {"Login", t.Login},
		{"ServerID", t.ServerID}, {"MFADevice", t.MFA}, {"AccessRequest", t.Request},
	} {
		if f.value != "" {
			return fmt.Sprintf("%s:%q", f.name, f.value)
		}
	}
	return "nothing"
}

// checkStrict refuses on a view that is too old for a role with strict locks.
func checkStrict(trust *sallyport.Trust, o sallyport.Options, now time.Time) *sallyport.Problem {
	if !o.StrictLock || now.Sub(trust.IssuedAt) <= strictMaxAge {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth since " + stamp(trust.IssuedAt),
		Hint: "your role needs a view of the locks that is at most 5 minutes old"}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
