//go:build failpoints && unix

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled says whether the program can be stopped.
const Enabled = true

// variable is read here and not in cmd: a point must work before anything is
// set up.
const variable = "SALLYPORT_FAILPOINTS"

const forever = time.Duration(1 << 62)

// Hit is a point where a test may stop the program, or let the step fail.
func Hit(name string) error { return planned().hit(name) }

// planned is what the environment says. A plan that cannot be read is a bug in
// a test, which would pass without it.
var planned = sync.OnceValue(func() *plan {
	p, err := parse(os.Getenv(variable))
	if err != nil {
		panic(variable + ": " + err.Error())
	}
	return p
})

type plan struct {
	acts map[string][]act

	mu   sync.Mutex
	seen map[string]int
}

type act struct {
	nth int // 0: every time
	do  string
	d   time.Duration
}

func parse(text string) (*plan, error) {
	p := &plan{acts: map[string][]act{}, seen: map[string]int{}}
	for _, item := range strings.Split(text, ";") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, what, ok := strings.Cut(item, "=")
		if !ok {
			return nil, fmt.Errorf("%q: no =", item)
		}
		a, err := parseAct(what)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", item, err)
		}
		name, nth, ok := strings.Cut(name, "#")
		if ok {
			if a.nth, err = strconv.Atoi(nth); err != nil || a.nth < 1 {
				return nil, fmt.Errorf("%q: not a number of times", item)
			}
		}
		p.acts[name] = append(p.acts[name], a)
	}
	return p, nil
}

func parseAct(what string) (act, error) {
	do, arg, timed := strings.Cut(what, ":")
	switch do {
	case "panic", "exit", "kill", "error", "hang":
		if timed {
			return act{}, fmt.Errorf("%s takes no time", do)
		}
		return act{do: do}, nil
	case "sleep":
		d, err := time.ParseDuration(arg)
		return act{do: do, d: d}, err
	}
	return act{}, fmt.Errorf("nothing known by the name of %q", do)
}

func (p *plan) hit(name string) error {
	acts := p.acts[name]
	if acts == nil {
		return nil
	}
	p.mu.Lock()
	p.seen[name]++
	n := p.seen[name]
	p.mu.Unlock()
	for _, a := range acts {
		if a.nth != 0 && a.nth != n {
			continue
		}
		if err := a.run(name); err != nil {
			return err
		}
	}
	return nil
}

func (a act) run(name string) error {
	switch a.do {
	case "panic":
		panic(Panic(name))
	case "exit":
		os.Exit(3)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(forever) // the signal arrives
	case "hang":
		time.Sleep(forever)
	case "sleep":
		time.Sleep(a.d)
	case "error":
		return fmt.Errorf("failpoint %s", name)
	}
	return nil
}
