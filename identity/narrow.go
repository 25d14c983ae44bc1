package identity

import (
	"slices"
	"time"

	"github.com/sallyport/sallyport"
)

// Narrower is what a re-issue may sign: everything that have restricts stays,
// and wanted adds no right to it. have is the identity of the certificate that
// asks, wanted what the control plane would give its holder now. Serial and
// Fingerprint of the result are empty.
//
// Things that a lock can name (roles, the MFA device, access requests) stay as
// they are in have or go together with the right they brought, so that a
// re-issue never slips out of a lock.
func Narrower(have, wanted sallyport.Identity) (sallyport.Identity, error) {
	if have.Kind != wanted.Kind || have.Cluster != wanted.Cluster || have.Name != wanted.Name {
		return sallyport.Identity{}, sallyport.Denied("a certificate is re-issued to its own holder only", "")
	}
	if have.DisallowReissue {
		return sallyport.Identity{}, sallyport.Denied("this certificate must not be re-issued", "log in again")
	}
	out := sallyport.Identity{
		Kind: have.Kind, Name: have.Name, Cluster: have.Cluster,
		Roles:           both(have.Roles, wanted.Roles),
		Traits:          bothTraits(have.Traits, wanted.Traits),
		Principals:      both(have.Principals, wanted.Principals),
		MFA:             have.MFA,
		LoginAddr:       have.LoginAddr,
		ActiveRequests:  have.ActiveRequests,
		DisallowReissue: wanted.DisallowReissue,
		Generation:      max(have.Generation, wanted.Generation),
		NotBefore:       later(have.NotBefore, wanted.NotBefore),
		NotAfter:        earlier(have.NotAfter, wanted.NotAfter),
	}
	var ok [4]bool
	out.PinnedAddr, ok[0] = either(have.PinnedAddr, wanted.PinnedAddr)
	out.Usage, ok[1] = either(have.Usage, wanted.Usage)
	out.BoundTo, ok[2] = either(have.BoundTo, wanted.BoundTo)
	out.AllowedResources, ok[3] = bothResources(have.AllowedResources, wanted.AllowedResources)
	for i, what := range []string{"address", "usage", "gateway", "resources"} {
		if !ok[i] {
			return sallyport.Identity{}, sallyport.Denied("this certificate is bound to another "+what, "log in again")
		}
	}
	if !out.NotBefore.Before(out.NotAfter) {
		return sallyport.Identity{}, sallyport.Denied("this certificate leaves no time for another", "log in again")
	}
	return out, nil
}

// both keeps the order of have.
func both(have, wanted []string) []string {
	var out []string
	for _, s := range have {
		if slices.Contains(wanted, s) {
			out = append(out, s)
		}
	}
	return out
}

func bothTraits(have, wanted map[string][]string) map[string][]string {
	var out map[string][]string
	for name, values := range have {
		w, in := wanted[name]
		if !in {
			continue
		}
		if out == nil {
			out = make(map[string][]string)
		}
		out[name] = both(values, w)
	}
	return out
}

// bothResources takes an empty list as "all". Two lists without a common
// member are not the empty list: that would turn nothing into everything.
func bothResources(have, wanted []string) (out []string, ok bool) {
	if len(have) == 0 {
		return wanted, true
	}
	if len(wanted) == 0 {
		return have, true
	}
	out = both(have, wanted)
	return out, len(out) > 0
}

// either takes "" as "not restricted"; two different restrictions leave nothing.
func either[S ~string](have, wanted S) (out S, ok bool) {
	if have == "" {
		return wanted, true
	}
	return have, wanted == "" || wanted == have
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// earlier takes the zero time as "not said".
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
