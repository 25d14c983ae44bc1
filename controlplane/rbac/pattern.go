package rbac

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Bounds of a pattern: matching is linear in the text (RE2), these keep the
// factor small.
const (
	maxPattern  = 1 << 10 // bytes of one glob or regular expression
	maxCompiled = 1 << 10 // regular expressions remembered per policy, from traits
)

// pattern matches a value of a label: literally, by a glob with *, or by a
// regular expression written ^…$.
type pattern struct {
	text string
	glob []string       // the pieces between the stars
	re   *regexp.Regexp // nil for literals and globs
}

// compilePattern compiles what a role or a trait says.
func compilePattern(text string) (pattern, error) {
	if len(text) > maxPattern {
		return pattern{}, fmt.Errorf("the pattern has %d bytes; %d are the most", len(text), maxPattern)
	}
	if isRegexp(text) {
		re, err := compileRegexp(text)
		return pattern{text: text, re: re}, err
	}
	p := pattern{text: text}
	if strings.Contains(text, "*") {
		p.glob = strings.Split(text, "*")
	}
	return p, nil
}

func isRegexp(text string) bool {
	return len(text) >= 2 && strings.HasPrefix(text, "^") && strings.HasSuffix(text, "$")
}

func compileRegexp(text string) (*regexp.Regexp, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("the regular expression has %d bytes; %d are the most", len(text), maxPattern)
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("%q is not a regular expression: %s", clean(text), clean(strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
	}
	return re, nil
}

// match tells whether the value matches. The empty pattern matches nothing,
// not even an empty value: it is what a missing trait leaves behind.
func (p pattern) match(value string) bool {
	switch {
	case p.text == "":
		return false
	case p.re != nil:
		return p.re.MatchString(value)
	case p.glob != nil:
		return matchGlob(p.glob, value)
	}
	return p.text == value
}

// matchGlob looks for the pieces in order, each at its first place, which is
// enough when stars match anything: linear, no going back.
func matchGlob(pieces []string, value string) bool {
	first, last := pieces[0], pieces[len(pieces)-1]
	if len(value) < len(first)+len(last) || !strings.HasPrefix(value, first) || !strings.HasSuffix(value, last) {
		return false
	}
	value = value[len(first) : len(value)-len(last)]
	for _, piece := range pieces[1 : len(pieces)-1] {
		i := strings.Index(value, piece)
		if i < 0 {
			return false
		}
		value = value[i+len(piece):]
	}
	return true
}

// patterns remembers what traits made of templates, so that a regular
// expression is compiled once and not at each decision.
type patterns struct {
	mu   sync.Mutex
	seen map[string]pattern
}

// get compiles a text that came out of a template. What does not compile
// matches nothing.
func (c *patterns) get(text string) pattern {
	if !isRegexp(text) {
		p, err := compilePattern(text)
		if err != nil {
			return pattern{}
		}
		return p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.seen[text]; ok {
		return p
	}
	p, err := compilePattern(text)
	if err != nil {
		p = pattern{}
	}
	if c.seen == nil || len(c.seen) >= maxCompiled {
		c.seen = make(map[string]pattern)
	}
	c.seen[text] = p
	return p
}
