package crash

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport/controlplane/audit"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

var (
	howLong = flag.Duration("crash", 15*time.Second, "how long processes are killed")
	seed    = flag.Uint64("seed", 0, "what decides who is killed and when; 0: chance")
)

// TestF3_KilledAtRandom kills auth, gateway and agent again and again while they
// are used, and starts them as they were. What was acknowledged is there in the
// end, and everything comes back by itself.
func TestF3_KilledAtRandom(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("go test ./test/crash -run %s -crash %s -seed %d", t.Name(), *howLong, *seed)
	c := newCluster(t)
	c.proc["auth"].start("")
	c.configure()
	c.proc["gateway"].start("")
	c.proc["agent"].start("")
	p := newPerson(c, "ann")
	await(t, "ann is logged in", func() bool { return p.try(p.login) == nil })
	await(t, "a session", func() bool { return p.try(p.use) == nil })
	people := []*person{newPerson(c, "bea"), newPerson(c, "cleo"), newPerson(c, "dora"), newPerson(c, "eve")}

	b := newBook()
	admin, done := c.admin()
	defer done()
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for _, m := range makers(admin) {
		load.Go(func() { m.run(ctx, t, b) })
	}
	load.Go(func() { logins(ctx, people, b) })
	for range 2 {
		load.Go(func() { p.sessions(ctx, b) })
	}
	back, kills := c.killAtRandom(b, rand.New(rand.NewPCG(*seed, 1)))
	killed := time.Now()
	await(t, "enough is done to prove something", b.much)
	enough := time.Now()
	stop()
	load.Wait()
	t.Logf("enough was done %s after the last kill, the load ended %s later", enough.Sub(killed).Round(time.Millisecond), time.Since(enough).Round(time.Millisecond))
	slices.Sort(back)
	t.Logf("killed %s; after the agent was killed and started a session worked again after %s in the middle, %s at most",
		kills, back[len(back)/2].Round(time.Millisecond), back[len(back)-1].Round(time.Millisecond))
	began := time.Now()
	c.compare(b)
	t.Logf("compared in %s", time.Since(began).Round(time.Millisecond))
}

// killAtRandom returns how long after an agent's start a session worked, each
// time that nobody else was killed meanwhile.
func (c *cluster) killAtRandom(b *book, chance *rand.Rand) (back []time.Duration, kills string) {
	roles := []string{"auth", "gateway", "agent"}
	count := map[string]int{}
	for end := time.Now().Add(*howLong); time.Now().Before(end) || len(back) == 0; {
		role := roles[chance.IntN(len(roles))]
		if time.Now().After(end) {
			role = "agent" // one at least is measured
		}
		time.Sleep(time.Duration(chance.IntN(700)) * time.Millisecond)
		c.proc[role].kill()
		c.proc[role].start("")
		count[role]++
		if role != "agent" && chance.IntN(2) == 0 {
			continue // the next one dies while this one starts
		}
		began := time.Now()
		await(c.t, "a session after "+role+" was killed", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.working.After(began)
		})
		if role == "agent" {
			back = append(back, time.Since(began))
		}
	}
	var out []string
	for _, role := range roles {
		out = append(out, fmt.Sprintf("%s %d times", role, count[role]))
	}
	return back, strings.Join(out, ", ")
}

// compare waits until everything is up, and looks for what was acknowledged.
func (c *cluster) compare(b *book) {
	c.t.Helper()
	total := c.compareThings(b)
	c.compareEvents(b)
	recovered := c.events(audit.AuditRecovered)
	c.t.Logf("%d users, roles and tokens, %d logins and %d sessions were acknowledged; an unfinished end of the audit log was cut %d times", total, b.logins, b.sessions, len(recovered))
	c.proc["auth"].stop()
	report, err := audit.Verify(c.path("auth", "auth", "audit"), func([]byte, []byte) error { return nil })
	if err != nil || len(report.Faults) > 0 {
		c.t.Errorf("the audit log: %v %v", err, report.Faults)
	}
}

// compareThings says how many there are in the book.
func (c *cluster) compareThings(b *book) (total int) {
	c.t.Helper()
	c.status()
	there := c.things()
	for kind, all := range b.things {
		for name, s := range all {
			total++
			switch {
			case s == made && !there[kind][listed(kind, name)]:
				c.t.Errorf("%s %s was acknowledged and is not there", kind, name)
			case s == gone && there[kind][listed(kind, name)]:
				c.t.Errorf("%s %s was removed, that was acknowledged, and it is there", kind, name)
			}
		}
	}
	return total
}

// things are all that auth has, by kind and name.
func (c *cluster) things() map[string]map[string]bool {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	out := map[string]map[string]bool{"user": {}, "role": {}, "token": {}}
	users, err := admin.ListUsers(c.t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, u := range users.Msg.GetUsers() {
		out["user"][u.GetName()] = true
	}
	roles, err := admin.GetDocuments(c.t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "role"}))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, doc := range roles.Msg.GetDocuments() {
		out["role"][nameIn(c.t, doc)] = true
	}
	tokens, err := admin.ListTokens(c.t.Context(), connect.NewRequest(&sallyportv1.ListTokensRequest{}))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, t := range tokens.Msg.GetTokens() {
		out["token"][t.GetName()] = true
	}
	return out
}

// listed is how auth calls a thing of the book: a token that somebody chose is
// known by a hash.
func listed(kind, name string) string {
	if kind != "token" {
		return name
	}
	sum := sha256.Sum256([]byte("sallyport-join-token\x00" + secretOf(name)))
	return "chosen-" + hex.EncodeToString(sum[:])[:8]
}

func nameIn(t testing.TB, doc string) string {
	t.Helper()
	var d struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(doc), &d); err != nil {
		t.Fatal(err)
	}
	return d.Metadata.Name
}

// compareEvents looks for the record of each thing that was acknowledged. Those
// of sessions come from the agent's spool, in their time.
func (c *cluster) compareEvents(b *book) {
	c.t.Helper()
	recorded := map[string]bool{}
	for _, e := range c.events(audit.UserCreate, audit.RoleCreate, audit.JoinTokenCreate, audit.UserDelete, audit.RoleDelete) {
		recorded[e.Name+" "+e.Subject] = true
	}
	for kind, names := range map[string][2]string{"user": {audit.UserCreate, audit.UserDelete}, "role": {audit.RoleCreate, audit.RoleDelete}, "token": {audit.JoinTokenCreate, ""}} {
		for name, s := range b.things[kind] {
			if s != asked && !recorded[names[0]+" "+listed(kind, name)] {
				c.t.Errorf("%s %s: no event %s", kind, name, names[0])
			}
			if s == gone && names[1] != "" && !recorded[names[1]+" "+listed(kind, name)] {
				c.t.Errorf("%s %s: no event %s", kind, name, names[1])
			}
		}
	}
	logins := 0
	for _, e := range c.events(audit.UserLogin) {
		if e.Success == nil || *e.Success {
			logins++
		}
	}
	if logins < b.logins {
		c.t.Errorf("%d logins were acknowledged, %d are recorded", b.logins, logins)
	}
	await(c.t, "the sessions' events have come", func() bool { return len(c.events("app.session.start")) >= b.sessions })
}
