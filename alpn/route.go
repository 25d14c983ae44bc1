package alpn

import "fmt"

// Class is where a connection goes.
type Class uint8

const (
	Refuse    Class = iota // told by Route.Alert
	Web                    // web UI and API: TLS ends here
	Auth                   // control API: to auth
	Join                   // joining: to auth
	Tunnel                 // an agent's control connection: TLS ends here
	Gateway                // another gateway: TLS ends here
	Store                  // a member of the embedded store
	Challenge              // ACME TLS-ALPN-01: TLS ends here
	Resource               // passed through to the agent of Kind and Name
	App                    // a web app for browsers, Name: TLS ends here
	Static                 // a route of the configuration: Index
)

// String names the class as counters do.
func (c Class) String() string {
	return [...]string{
		Refuse: "refuse", Web: "web", Auth: "auth", Join: "join", Tunnel: "tunnel", Gateway: "gateway",
		Store: "store", Challenge: "acme", Resource: "resource", App: "app", Static: "static",
	}[c]
}

// Route is the answer of a table. Name is a part of the Hello that was routed.
type Route struct {
	Class Class
	Kind  string // resources
	Name  []byte // resources, apps
	Index int    // static routes: the position in the configuration
	Alert Alert  // Refuse
}

// Match is what a static route takes: any of the names and any of the ids. A
// name is exact, "*.<name>" for one label more, or "*" for every name that
// nothing else owns, a missing one included. Without ALPN any offer matches.
type Match struct {
	SNI  []string
	ALPN []string
}

// Table routes hellos: the cluster's own names and the static routes. It is
// read-only and may be shared.
type Table struct {
	cluster  string
	exact    map[string][]rule
	wildcard map[string][]rule // by what follows "*."
	rest     []rule
}

// rule is one static route under one name.
type rule struct {
	alpn  []string // empty: any offer
	index int
}

// NewTable builds the table. cluster may be empty: then there are only static
// routes. Two routes that could claim the same hello are an error, and so is one
// that claims a name of the cluster's own.
func NewTable(cluster string, static []Match) (*Table, error) {
	t := &Table{exact: map[string][]rule{}, wildcard: map[string][]rule{}}
	if cluster != "" {
		name, ok := NormalName(cluster)
		if !ok {
			return nil, fmt.Errorf("cluster %q: not a host name", cluster)
		}
		t.cluster = name
	}
	for i, m := range static {
		if len(m.SNI) == 0 {
			return nil, fmt.Errorf("route %d: no server name to match", i)
		}
		for _, sni := range m.SNI {
			if err := t.add(sni, rule{alpn: m.ALPN, index: i}); err != nil {
				return nil, fmt.Errorf("route %d: %w", i, err)
			}
		}
	}
	return t, nil
}

func (t *Table) add(sni string, r rule) error {
	var rules []rule
	pattern, wildcard := trimWildcard(sni)
	name, ok := NormalName(pattern)
	switch {
	case sni == "*":
		rules = t.rest
	case !ok:
		return fmt.Errorf("server name %q: not a host name", sni)
	case t.owns(name, wildcard):
		return fmt.Errorf("server name %q: belongs to the cluster", sni)
	case wildcard:
		rules = t.wildcard[name]
	default:
		rules = t.exact[name]
	}
	for _, other := range rules {
		if id, clash := overlap(other, r); clash {
			return fmt.Errorf("server name %q with protocol %q: route %d has it too", sni, id, other.index)
		}
	}
	rules = append(rules, r)
	switch {
	case sni == "*":
		t.rest = rules
	case wildcard:
		t.wildcard[name] = rules
	default:
		t.exact[name] = rules
	}
	return nil
}

// owns says that a static route must not have the name: the cluster's own, the
// reserved ones, and all below a kind.
func (t *Table) owns(name string, wildcard bool) bool {
	if t.cluster == "" {
		return false
	}
	if name == t.cluster {
		return true
	}
	rest, below := under(name, t.cluster)
	if !below {
		return false
	}
	kind, _ := splitKind(rest)
	return kind != "" || isReserved(rest) || wildcard
}

func overlap(a, b rule) (id string, clash bool) {
	if len(a.alpn) == 0 || len(b.alpn) == 0 {
		return "any", len(a.alpn) == len(b.alpn)
	}
	for _, x := range a.alpn {
		for _, y := range b.alpn {
			if x == y {
				return x, true
			}
		}
	}
	return "", false
}

// Route decides. The strictest name wins: an exact static route and the
// cluster's own name, a static wildcard, the names below the cluster, the static
// default; and who owns a name decides alone, so a protocol that it does not speak is refused and never falls to a
// wider rule.
func (t *Table) Route(h *Hello) Route {
	name := h.ServerName()
	if len(name) == 0 {
		return t.nameless(h)
	}
	if rules, ok := t.exact[string(name)]; ok {
		return static(rules, h)
	}
	if t.cluster != "" && string(name) == t.cluster {
		return own(h)
	}
	if rest, ok := parent(name); ok {
		if rules, ok := t.wildcard[string(rest)]; ok {
			return static(rules, h)
		}
	}
	if rest, ok := under(name, t.cluster); ok {
		return below(rest, h)
	}
	if t.rest != nil {
		return static(t.rest, h)
	}
	return refuse(UnrecognizedName)
}

// nameless is a hello without a name, or with an IP literal: the cluster itself,
// or where there is no cluster the static default.
func (t *Table) nameless(h *Hello) Route {
	if t.cluster != "" {
		return own(h)
	}
	if t.rest != nil {
		return static(t.rest, h)
	}
	return refuse(UnrecognizedName)
}

// own routes the cluster's own name by protocol. Exactly one thing must be
// asked for; auth ends its own TLS and may be offered HTTP beside its id.
func own(h *Hello) Route {
	if h.offers == 0 || only(h.offers, idHTTP, idHTTP|idHTTPOther) {
		return Route{Class: Web}
	}
	switch asked := h.offers &^ idOther; {
	case asked&^idHTTP == idAuth:
		return Route{Class: Auth}
	case asked&^idHTTP == idJoin:
		return Route{Class: Join}
	case asked == idTunnel:
		return Route{Class: Tunnel}
	case asked == idGateway:
		return Route{Class: Gateway}
	case asked == idStore:
		return Route{Class: Store}
	case asked == idACME:
		return Route{Class: Challenge}
	}
	return refuse(NoApplicationProtocol)
}

// below routes what stands before the cluster's name.
func below(rest []byte, h *Hello) Route {
	if kind, name := splitKind(rest); kind != "" {
		if !speaks(kind, h.offers) {
			return refuse(NoApplicationProtocol)
		}
		return Route{Class: Resource, Kind: kind, Name: name}
	}
	if !isLabel(rest) || isReserved(rest) {
		return refuse(UnrecognizedName)
	}
	if h.offers&^idOther == idACME {
		return Route{Class: Challenge}
	}
	if only(h.offers, idHTTP, idHTTP|idHTTPOther) {
		return Route{Class: App, Name: rest}
	}
	return refuse(NoApplicationProtocol)
}

// speaks says that an offer may reach a kind of resource. An id of ours is good
// for its own kind only; what a browser offers never reaches what is not HTTP
// (except tcp, whose protocol is whatever the resource's is).
func speaks(kind string, offers ids) bool {
	switch kind {
	case "node":
		return only(offers, idSSH, idSSH)
	case "db":
		return offers == 0 || only(offers, idDB|idPostgreSQL, idDB|idPostgreSQL)
	case "kube", "app":
		return only(offers, idHTTP, idHTTP|idHTTPOther)
	case "tcp":
		return offers&idOurs&^idTCP == 0
	case "desktop":
		return only(offers, idDesktop, idDesktop) || offers&(idOurs|idHTTP|idHTTPOther) == 0
	}
	return false
}

// only says that the offer has one of need, and that what else is known to this
// package is in may.
func only(offers, need, may ids) bool {
	return offers&need != 0 && offers&^(may|idOther) == 0
}

// static picks among the rules of one name: the client's first id that a rule
// lists, else the rule for any offer.
func static(rules []rule, h *Hello) Route {
	for list := h.list(); len(list.rest) > 0; {
		id := list.vector8()
		for _, r := range rules {
			for _, a := range r.alpn {
				if string(id) == a {
					return Route{Class: Static, Index: r.index}
				}
			}
		}
	}
	for _, r := range rules {
		if len(r.alpn) == 0 {
			return Route{Class: Static, Index: r.index}
		}
	}
	return refuse(NoApplicationProtocol)
}

// parent cuts the first label off.
func parent(name []byte) (rest []byte, ok bool) {
	for i, c := range name {
		if c == '.' {
			return name[i+1:], true
		}
	}
	return nil, false
}

func refuse(a Alert) Route { return Route{Class: Refuse, Alert: a} }
