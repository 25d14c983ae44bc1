package inventory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/controlplane/store"
)

// MaxResources bounds one announcement.
const MaxResources = 1024

// errTaken: another agent has taken a name since it was looked at.
var errTaken = errors.New("taken")

// Refusal is a resource that the agent may not serve, and why.
type Refusal struct {
	Kind   sallyport.Kind
	Name   string
	Reason string
}

// Assignment is what an agent serves from now on.
type Assignment struct {
	AgentID   string
	Revision  uint64 // grows with each change of anything
	Resources []sallyport.Resource
	Tag       uint16
	Refusals  []Refusal
}

// owners is who has a name.
type owners struct {
	Group  string   `json:"group,omitempty"`
	Agents []string `json:"agents"`
}

// others says that the name is that of agents with whom the resource's may not share it.
func (o owners) others(r sallyport.Resource) bool {
	alone := len(o.Agents) == 0 || len(o.Agents) == 1 && o.Agents[0] == r.AgentID
	return !alone && (r.Group == "" || r.Group != o.Group)
}

// has says that nothing would change by giving the resource to its agent.
func (o owners) has(r sallyport.Resource, had held) bool {
	return slices.Contains(o.Agents, r.AgentID) && r.Group == o.Group && sameResource(r, had)
}

// held is a resource of an agent, as it stands in the store.
type held struct {
	sallyport.Resource
	revision int64
}

func nameKey(k sallyport.Kind, name string) string { return "names/" + string(k) + "/" + name }

func resourceKey(agent string, k sallyport.Kind, name string) string {
	return "resources/" + agent + "/" + string(k) + "/" + name
}

// Difference is what an announcement changes of what its agent serves:
// "<kind>/<name>" in their order.
type Difference struct {
	New     []string // names that it has not had
	Changed []string // that it keeps, with other labels, another address or the like
	GivenUp []string
}

func (d Difference) none() bool { return len(d.New)+len(d.Changed)+len(d.GivenUp) == 0 }

// Announce takes all that an agent wants to serve and says what it may. What
// it had before and does not announce any more is free for others. change, unless
// it is nil, is called before anything is changed, and makes the change by
// calling do; its error ends the announcement. An error of do says whether part of
// the change was made: where another agent is faster with a name, all but that.
func (inv *Inventory) Announce(ctx context.Context, agentID string, wanted []sallyport.Resource, change func(d Difference, do func() error) error) (Assignment, error) {
	if len(wanted) > MaxResources {
		return Assignment{}, invalid(fmt.Sprintf("%d resources, at most %d allowed", len(wanted), MaxResources))
	}
	rec, _, err := inv.getHost(ctx, agentID)
	if err != nil {
		return Assignment{}, err
	}
	if rec.Kind != sallyport.KindAgent {
		return Assignment{}, sallyport.Denied("only agents serve resources", "")
	}
	if change == nil {
		change = func(_ Difference, do func() error) error { return do() }
	}
	for range maxRaces {
		a := &announcement{inv: inv, host: rec, out: Assignment{AgentID: agentID, Tag: rec.Tag}, seen: make(map[string]bool)}
		if err := a.look(ctx, wanted); err != nil {
			return Assignment{}, err
		}
		if d := a.difference(); !d.none() {
			err := change(d, func() error { return a.apply(ctx) })
			if errors.Is(err, errTaken) {
				continue
			}
			if err != nil {
				return Assignment{}, err
			}
		}
		rev, err := inv.store.Revision(ctx)
		a.out.Revision = uint64(rev)
		return a.out, err
	}
	return Assignment{}, busy()
}

// announcement is one call of Announce on its way: first it looks what the agent
// may have and what that changes, then it changes that.
type announcement struct {
	inv  *Inventory
	host hostRecord
	had  map[string]held // by "<kind>/<name>"
	out  Assignment
	seen map[string]bool
	node bool // a node was announced

	claims []sallyport.Resource // of out, what is to be stored
}

// look finds out what the agent may have. Its error is of the store.
func (a *announcement) look(ctx context.Context, wanted []sallyport.Resource) (err error) {
	if a.had, err = a.inv.held(ctx, a.host.ID); err != nil {
		return err
	}
	for _, r := range wanted {
		if err := a.take(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// difference is what apply changes.
func (a *announcement) difference() (d Difference) {
	for _, r := range a.claims {
		if _, had := a.had[keyOf(r)]; had {
			d.Changed = append(d.Changed, keyOf(r))
		} else {
			d.New = append(d.New, keyOf(r))
		}
	}
	slices.Sort(d.Changed)
	slices.Sort(d.New)
	for _, key := range slices.Sorted(maps.Keys(a.had)) {
		if !a.seen[key] {
			d.GivenUp = append(d.GivenUp, key)
		}
	}
	return d
}

// apply stores what is to be stored, and gives up what was not announced any more,
// or is not allowed any more.
func (a *announcement) apply(ctx context.Context) error {
	done := 0
	var taken []string
	for _, r := range a.claims {
		ok, err := a.inv.claim(ctx, r, a.had[keyOf(r)])
		if err != nil {
			return partly(done, err)
		}
		if !ok {
			taken = append(taken, keyOf(r))
			continue
		}
		done++
	}
	for _, key := range a.difference().GivenUp {
		if err := a.inv.release(ctx, a.host.ID, a.had[key].Resource, false); err != nil {
			return partly(done, err)
		}
		done++
	}
	if len(taken) > 0 {
		return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "another agent has taken " + strings.Join(taken, ", ") + " meanwhile; the rest was changed", Cause: errTaken}
	}
	return nil
}

// partly says of what stopped a change that part of it was made.
func partly(done int, err error) error {
	var p *sallyport.Problem
	if done == 0 || !errors.As(err, &p) {
		return err
	}
	said := *p
	said.Fact, said.Cause = "part of this was changed; then: "+p.Fact, err
	return &said
}

// take assigns one resource or notes why not. Its error is of the store.
func (a *announcement) take(ctx context.Context, r sallyport.Resource) error {
	r.AgentID = a.host.ID
	if reason := bounded(r); reason != "" {
		a.refuse(r, reason)
		return nil
	}
	if r.Kind == sallyport.KindNode {
		return a.takeNode(ctx, r)
	}
	r.ID, r.Hostname = "", ""
	reason, err := a.assign(ctx, r)
	if err == nil && reason != "" {
		a.refuse(r, reason)
	}
	return err
}

// assign notes that the agent has the resource, or says why it may not.
func (a *announcement) assign(ctx context.Context, r sallyport.Resource) (reason string, err error) {
	if reason := a.check(r); reason != "" {
		return reason, nil
	}
	o, _, err := a.inv.owners(ctx, r.Kind, r.Name)
	if err != nil {
		return "", err
	}
	if o.others(r) {
		return "the name belongs to another agent", nil
	}
	if !o.has(r, a.had[keyOf(r)]) {
		a.claims = append(a.claims, r)
	}
	a.seen[keyOf(r)] = true
	a.out.Resources = append(a.out.Resources, r)
	return "", nil
}

// takeNode gives the node the name it had, or the first free one of its
// host name and that with suffixes from its id.
func (a *announcement) takeNode(ctx context.Context, r sallyport.Resource) error {
	if r.Hostname == "" {
		r.Hostname = r.Name
	}
	r.ID, r.Group, r.Name = a.host.ID, "", slug(r.Hostname)
	if a.node {
		a.refuse(r, "an agent serves one node")
		return nil
	}
	var first string
	for _, name := range a.nodeNames(r.Hostname) {
		r.Name = name
		reason, err := a.assign(ctx, r)
		if err != nil {
			return err
		}
		if reason == "" {
			a.node = true
			return nil
		}
		if first == "" {
			first = reason
		}
	}
	r.Name = slug(r.Hostname)
	a.refuse(r, first)
	return nil
}

// nodeNames are the names to try, the present one first when it still fits
// the host name.
func (a *announcement) nodeNames(hostname string) []string {
	base := slug(hostname)
	id := strings.ReplaceAll(a.host.ID, "-", "")
	names := []string{base}
	for _, n := range []int{4, 8, 16} {
		names = append(names, strings.TrimSuffix(base[:min(len(base), maxLabel-n-1)], "-")+"-"+id[:n])
	}
	slices.SortStableFunc(names, func(x, y string) int {
		_, hasX := a.had[string(sallyport.KindNode)+"/"+x]
		_, hasY := a.had[string(sallyport.KindNode)+"/"+y]
		switch {
		case hasX && !hasY:
			return -1
		case hasY && !hasX:
			return 1
		}
		return 0
	})
	return names
}

// check says why this agent may not serve the resource, whoever has the name.
func (a *announcement) check(r sallyport.Resource) string {
	if reason := nameFault(r.Name); reason != "" {
		return reason
	}
	if a.seen[keyOf(r)] {
		return "announced twice"
	}
	return a.host.Allow.refuses(r)
}

func (a *announcement) refuse(r sallyport.Resource, reason string) {
	a.out.Refusals = append(a.out.Refusals, Refusal{Kind: sallyport.Kind(cut(string(r.Kind), maxLabel)), Name: cut(r.Name, maxLabel), Reason: reason})
}

// held is what an agent has, by "<kind>/<name>".
func (inv *Inventory) held(ctx context.Context, agent string) (map[string]held, error) {
	items, _, err := inv.store.List(ctx, "resources/"+agent)
	if err != nil {
		return nil, err
	}
	out := make(map[string]held)
	for _, it := range items {
		r, err := decodeResource(it)
		if err != nil {
			return nil, err
		}
		out[keyOf(r)] = held{r, it.Revision}
	}
	return out, nil
}

// claim takes the name for the resource's agent, together with the resource's
// record and only while the host exists. It is false when the name is another's.
func (inv *Inventory) claim(ctx context.Context, r sallyport.Resource, had held) (bool, error) {
	for range maxRaces {
		ok, err := inv.tryClaim(ctx, r, had)
		if !errors.Is(err, sallyport.ErrConflict) && !errors.Is(err, sallyport.ErrExists) && !errors.Is(err, sallyport.ErrNotFound) {
			return ok, err
		}
		// Whoever was faster: look again. A host that is gone ends it.
		if _, _, err := inv.getHost(ctx, r.AgentID); err != nil {
			return false, err
		}
	}
	return false, busy()
}

func (inv *Inventory) tryClaim(ctx context.Context, r sallyport.Resource, had held) (bool, error) {
	o, it, err := inv.owners(ctx, r.Kind, r.Name)
	if err != nil {
		return false, err
	}
	if o.others(r) {
		return false, nil
	}
	if o.has(r, had) {
		return true, nil
	}
	o.Group = r.Group
	if !slices.Contains(o.Agents, r.AgentID) {
		o.Agents = append(o.Agents, r.AgentID)
	}
	nameValue, err := store.Keep(it.Value, o)
	if err != nil {
		return false, err
	}
	value, err := encodeResource(r)
	if err != nil {
		return false, err
	}
	_, host, err := inv.getHost(ctx, r.AgentID)
	if err != nil {
		return false, err
	}
	if err := inv.changes.take(r.AgentID, len(nameValue)+len(value), inv.now()); err != nil {
		return false, err
	}
	_, err = inv.store.Apply(ctx,
		store.Op{Key: nameKey(r.Kind, r.Name), Value: nameValue, Expect: it.Revision},
		store.Op{Key: resourceKey(r.AgentID, r.Kind, r.Name), Value: value, Expect: store.Any},
		// The host must not be removed meanwhile.
		store.Op{Key: host.Key, Check: true, Expect: host.Revision},
	)
	return err == nil, err
}

// release gives a resource's name up; with reserve also in a full store, where
// that takes a new list of the others who have it.
func (inv *Inventory) release(ctx context.Context, agent string, r sallyport.Resource, reserve bool) error {
	for range maxRaces {
		err := inv.tryRelease(ctx, agent, r, reserve)
		if !errors.Is(err, sallyport.ErrConflict) && !errors.Is(err, sallyport.ErrExists) && !errors.Is(err, sallyport.ErrNotFound) {
			return err
		}
	}
	return busy()
}

func (inv *Inventory) tryRelease(ctx context.Context, agent string, r sallyport.Resource, reserve bool) error {
	ops := []store.Op{{Key: resourceKey(agent, r.Kind, r.Name), Delete: true, Expect: store.Any}}
	o, it, err := inv.owners(ctx, r.Kind, r.Name)
	if err != nil {
		return err
	}
	if i := slices.Index(o.Agents, agent); i >= 0 {
		o.Agents = slices.Delete(o.Agents, i, i+1)
		op := store.Op{Key: nameKey(r.Kind, r.Name), Expect: it.Revision, Delete: len(o.Agents) == 0}
		if !op.Delete {
			op.Reserve = reserve
			if op.Value, err = store.Keep(it.Value, o); err != nil {
				return err
			}
		}
		ops = append(ops, op)
	}
	_, err = inv.store.Apply(ctx, ops...)
	return err
}

// owners reads who has a name; nobody is no error.
func (inv *Inventory) owners(ctx context.Context, k sallyport.Kind, name string) (owners, store.Item, error) {
	it, err := inv.store.Get(ctx, nameKey(k, name))
	if errors.Is(err, sallyport.ErrNotFound) {
		return owners{}, store.Item{Revision: store.Absent}, nil
	}
	if err != nil {
		return owners{}, store.Item{}, err
	}
	var o owners
	if err := json.Unmarshal(it.Value, &o); err != nil {
		return owners{}, store.Item{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	return o, it, nil
}

func keyOf(r sallyport.Resource) string { return string(r.Kind) + "/" + r.Name }

const maxLabel = 63 // RFC 1035, section 2.3.4

// nameFault says why nothing may have this name, or "".
func nameFault(s string) string {
	switch {
	case !alpn.ValidLabel(s):
		return "a name is one DNS label: lower-case letters, digits and hyphens, at most 63"
	case alpn.Reserved(s):
		return "the name is reserved"
	case uuid.Validate(s) == nil:
		return "a name must not look like a host's id"
	}
	return ""
}

// slug makes a DNS label of a host name's first part. What is empty or
// reserved becomes "host".
func slug(hostname string) string {
	first, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	var b strings.Builder
	for _, r := range first {
		if r > '~' || !alpn.ValidLabel(string(r)) {
			r = '-'
		}
		if r != '-' || b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteRune(r)
		}
	}
	s := strings.Trim(cut(b.String(), maxLabel), "-")
	if s == "" || nameFault(s) != "" {
		return "host"
	}
	return s
}

func text(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func cut(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "")
	}
	return s
}
