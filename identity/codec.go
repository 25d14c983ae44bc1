package identity

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"google.golang.org/protobuf/encoding/protowire"
)

// Limits of one encoded identity. Encoding refuses what decoding would.
const (
	MaxEncoded = 64 << 10 // bytes of the message

	maxName        = 255 // bytes of a user's or host's name
	maxString      = 4 << 10
	maxRoles       = 1024
	maxTraits      = 512
	maxTraitValues = 4096 // of all traits together
	maxPrincipals  = 1024
	maxResources   = 1024
	maxRequests    = 64
)

// Field numbers of the message; doc.go is the schema.
const (
	fieldKind             protowire.Number = 1
	fieldName             protowire.Number = 2
	fieldCluster          protowire.Number = 3
	fieldRoles            protowire.Number = 4
	fieldTraits           protowire.Number = 5
	fieldPrincipals       protowire.Number = 6
	fieldMFA              protowire.Number = 7
	fieldPinnedAddr       protowire.Number = 8
	fieldLoginAddr        protowire.Number = 9
	fieldAllowedResources protowire.Number = 10
	fieldActiveRequests   protowire.Number = 11
	fieldUsage            protowire.Number = 12
	fieldBoundTo          protowire.Number = 13
	fieldDisallowReissue  protowire.Number = 14
	fieldGeneration       protowire.Number = 15

	// firstCritical is the first number whose field must be understood.
	firstCritical protowire.Number = 1024

	traitName   protowire.Number = 1
	traitValues protowire.Number = 2
)

// encode writes the message. Equal identities give equal bytes.
func encode(id sallyport.Identity) ([]byte, error) {
	if err := check(id); err != nil {
		return nil, err
	}
	var b []byte
	b = appendString(b, fieldKind, string(id.Kind))
	b = appendString(b, fieldName, id.Name)
	b = appendString(b, fieldCluster, id.Cluster)
	b = appendStrings(b, fieldRoles, id.Roles)
	for _, name := range slices.Sorted(maps.Keys(id.Traits)) {
		trait := appendString(nil, traitName, name)
		trait = appendStrings(trait, traitValues, id.Traits[name])
		b = protowire.AppendTag(b, fieldTraits, protowire.BytesType)
		b = protowire.AppendBytes(b, trait)
	}
	b = appendStrings(b, fieldPrincipals, id.Principals)
	b = appendString(b, fieldMFA, id.MFA)
	b = appendString(b, fieldPinnedAddr, id.PinnedAddr)
	b = appendString(b, fieldLoginAddr, id.LoginAddr)
	b = appendStrings(b, fieldAllowedResources, id.AllowedResources)
	b = appendStrings(b, fieldActiveRequests, id.ActiveRequests)
	b = appendString(b, fieldUsage, string(id.Usage))
	b = appendString(b, fieldBoundTo, id.BoundTo)
	b = appendUint(b, fieldDisallowReissue, protowire.EncodeBool(id.DisallowReissue))
	b = appendUint(b, fieldGeneration, id.Generation)
	if len(b) > MaxEncoded {
		return nil, fmt.Errorf("identity of %q: %d bytes, at most %d fit a certificate", id.Name, len(b), MaxEncoded)
	}
	return b, nil
}

func appendString(b []byte, n protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func appendStrings(b []byte, n protowire.Number, list []string) []byte {
	for _, s := range list {
		b = protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
	}
	return b
}

func appendUint(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

// decode reads the message; what it accepts, encode can write.
func decode(b []byte) (sallyport.Identity, error) {
	if len(b) > MaxEncoded {
		return sallyport.Identity{}, fmt.Errorf("identity: %d bytes, at most %d allowed", len(b), MaxEncoded)
	}
	var d decoder
	for len(b) > 0 {
		n, rest, err := d.field(b)
		if err != nil {
			return sallyport.Identity{}, fmt.Errorf("identity: field %d: %w", n, err)
		}
		b = rest
	}
	if err := check(d.id); err != nil {
		return sallyport.Identity{}, err
	}
	return d.id, nil
}

// decoder collects one message. seen has a bit for each known field.
type decoder struct {
	id     sallyport.Identity
	seen   uint32
	values int // trait values so far
}

// field reads the first field of b and returns what follows it.
func (d *decoder) field(b []byte) (protowire.Number, []byte, error) {
	n, wire, size := protowire.ConsumeTag(b)
	if size < 0 {
		return 0, nil, protowire.ParseError(size)
	}
	b = b[size:]
	want, known := wireType(n)
	switch {
	case !known:
		rest, err := skip(n, wire, b)
		return n, rest, err
	case wire != want:
		return n, nil, fmt.Errorf("wire type %d, want %d", wire, want)
	case want == protowire.VarintType:
		v, size := protowire.ConsumeVarint(b)
		if size < 0 {
			return n, nil, protowire.ParseError(size)
		}
		return n, b[size:], d.number(n, v)
	}
	v, size := protowire.ConsumeBytes(b)
	if size < 0 {
		return n, nil, protowire.ParseError(size)
	}
	return n, b[size:], d.bytes(n, v)
}

// skip passes over a field that this version does not know, unless it
// restricts.
func skip(n protowire.Number, wire protowire.Type, b []byte) ([]byte, error) {
	if n >= firstCritical {
		return nil, fmt.Errorf("restricts in a way that this version does not know")
	}
	size := protowire.ConsumeFieldValue(n, wire, b)
	if size < 0 {
		return nil, protowire.ParseError(size)
	}
	return b[size:], nil
}

// wireType is the wire type of a known field.
func wireType(n protowire.Number) (t protowire.Type, known bool) {
	switch {
	case n == fieldDisallowReissue || n == fieldGeneration:
		return protowire.VarintType, true
	case n >= fieldKind && n <= fieldBoundTo:
		return protowire.BytesType, true
	}
	return 0, false
}

// once refuses a second value of a field that has one: readers differ in
// which of the two they take.
func (d *decoder) once(n protowire.Number) error {
	if d.seen&(1<<uint(n)) != 0 {
		return fmt.Errorf("given twice")
	}
	d.seen |= 1 << uint(n)
	return nil
}

func (d *decoder) number(n protowire.Number, v uint64) error {
	if err := d.once(n); err != nil {
		return err
	}
	if n == fieldGeneration {
		d.id.Generation = v
		return nil
	}
	if v > 1 {
		return fmt.Errorf("%d is not a truth value", v)
	}
	d.id.DisallowReissue = v == 1
	return nil
}

func (d *decoder) bytes(n protowire.Number, v []byte) error {
	switch n {
	case fieldRoles:
		return add(&d.id.Roles, v, maxRoles)
	case fieldPrincipals:
		return add(&d.id.Principals, v, maxPrincipals)
	case fieldAllowedResources:
		return add(&d.id.AllowedResources, v, maxResources)
	case fieldActiveRequests:
		return add(&d.id.ActiveRequests, v, maxRequests)
	case fieldTraits:
		return d.trait(v)
	}
	if err := d.once(n); err != nil {
		return err
	}
	if len(v) > maxString {
		return fmt.Errorf("%d bytes, at most %d allowed", len(v), maxString)
	}
	switch s := string(v); n {
	case fieldKind:
		d.id.Kind = sallyport.IdentityKind(s)
	case fieldName:
		d.id.Name = s
	case fieldCluster:
		d.id.Cluster = s
	case fieldMFA:
		d.id.MFA = s
	case fieldPinnedAddr:
		d.id.PinnedAddr = s
	case fieldLoginAddr:
		d.id.LoginAddr = s
	case fieldUsage:
		d.id.Usage = sallyport.Usage(s)
	case fieldBoundTo:
		d.id.BoundTo = s
	}
	return nil
}

// trait reads one entry of traits; unknown fields are treated as in the message.
func (d *decoder) trait(b []byte) error {
	var name string
	var values []string
	for len(b) > 0 {
		n, wire, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if n != traitName && n != traitValues {
			rest, err := skip(n, wire, b)
			if err != nil {
				return err
			}
			b = rest
			continue
		}
		if wire != protowire.BytesType {
			return fmt.Errorf("trait field %d: wire type %d", n, wire)
		}
		v, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if n == traitName {
			if name != "" {
				return fmt.Errorf("trait named twice")
			}
			name = string(v)
			continue
		}
		if d.values++; d.values > maxTraitValues {
			return fmt.Errorf("more than %d trait values", maxTraitValues)
		}
		values = append(values, string(v))
	}
	if _, twice := d.id.Traits[name]; twice {
		return fmt.Errorf("trait given twice")
	}
	if len(d.id.Traits) >= maxTraits {
		return fmt.Errorf("more than %d traits", maxTraits)
	}
	if d.id.Traits == nil {
		d.id.Traits = make(map[string][]string)
	}
	d.id.Traits[name] = values
	return nil
}

func add(list *[]string, v []byte, most int) error {
	if len(*list) >= most {
		return fmt.Errorf("more than %d values", most)
	}
	*list = append(*list, string(v))
	return nil
}

// check says whether an identity may stand in a certificate. Both directions
// of the codec use it.
func check(id sallyport.Identity) error {
	if err := checkName(id.Kind, id.Cluster, id.Name); err != nil {
		return err
	}
	lists := []struct {
		what string
		list []string
		most int
	}{
		{"role", id.Roles, maxRoles},
		{"principal", id.Principals, maxPrincipals},
		{"allowed resource", id.AllowedResources, maxResources},
		{"active request", id.ActiveRequests, maxRequests},
	}
	for _, l := range lists {
		if err := checkList(l.what, l.list, l.most); err != nil {
			return err
		}
	}
	if err := checkTraits(id.Traits); err != nil {
		return err
	}
	for _, r := range id.AllowedResources {
		if strings.Count(r, "/") != 3 || r[0] != '/' {
			return fmt.Errorf("allowed resource %q: want /<cluster>/<kind>/<name>", r)
		}
	}
	for _, addr := range []string{id.PinnedAddr, id.LoginAddr} {
		if !validAddr(addr) {
			return fmt.Errorf("address %q: not an IP address in its shortest form", addr)
		}
	}
	if err := checkText("mfa device", id.MFA); err != nil {
		return err
	}
	return checkUsage(id)
}

// checkUsage refuses what this version could not enforce.
func checkUsage(id sallyport.Identity) error {
	switch id.Usage {
	case "":
		if id.BoundTo != "" {
			return fmt.Errorf("bound to %q without a usage", id.BoundTo)
		}
		return nil
	case sallyport.UsageWeb:
		if id.BoundTo == "" {
			return fmt.Errorf("usage web: bound to no gateway")
		}
		if kind, cluster, _, err := parse(id.BoundTo); err != nil || kind != sallyport.KindGateway || cluster != id.Cluster {
			return fmt.Errorf("usage web: bound to %q, want a gateway of %s", id.BoundTo, id.Cluster)
		}
		return nil
	}
	return fmt.Errorf("usage %q is not known to this version", id.Usage)
}

func checkList(what string, list []string, most int) error {
	if len(list) > most {
		return fmt.Errorf("%d times %s, at most %d allowed", len(list), what, most)
	}
	for _, s := range list {
		if s == "" {
			return fmt.Errorf("empty %s", what)
		}
		if err := checkText(what, s); err != nil {
			return err
		}
	}
	return nil
}

func checkTraits(traits map[string][]string) error {
	if len(traits) > maxTraits {
		return fmt.Errorf("%d traits, at most %d allowed", len(traits), maxTraits)
	}
	total := 0
	for name, values := range traits {
		if name == "" {
			return fmt.Errorf("trait without a name")
		}
		if err := checkText("trait", name); err != nil {
			return err
		}
		for _, v := range values {
			if err := checkText("trait "+name, v); err != nil {
				return err
			}
		}
		total += len(values)
	}
	if total > maxTraitValues {
		return fmt.Errorf("%d trait values, at most %d allowed", total, maxTraitValues)
	}
	return nil
}

// checkText refuses what would change its meaning in a log, a terminal or a
// header.
func checkText(what, s string) error {
	if len(s) > maxString {
		return fmt.Errorf("%s: %d bytes, at most %d allowed", what, len(s), maxString)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s %q: not printable text", what, s)
	}
	return nil
}

// validAddr takes "" and addresses that are their own shortest form, so that
// comparing strings compares addresses.
func validAddr(s string) bool {
	if s == "" {
		return true
	}
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Zone() == "" && !addr.Is4In6() && addr.String() == s
}
