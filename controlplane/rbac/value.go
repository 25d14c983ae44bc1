package rbac

import (
	"github.com/sallyport/sallyport"
)

// Value is a string with at most one {{expression}} over a user's traits, in the
// language of roles, for other documents than roles.
type Value struct{ template template }

// ParseValue parses a value as a role would.
func ParseValue(text string) (Value, error) {
	t, err := parseTemplate(text)
	return Value{t}, err
}

// Names says that the value is made of this trait.
func (v Value) Names(trait string) bool { return v.template.inner != nil && v.template.trait == trait }

// Expand returns the strings that the value makes for an identity: one for each
// value of its trait, none for a trait that is missing.
func (v Value) Expand(id sallyport.Identity) []string {
	var out []string
	v.template.expand(&scope{id: &id}, func(s string) bool {
		out = append(out, s)
		return len(out) < maxValues
	})
	return out
}
