package alpn

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

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
		Store: "store", Challenge: "acme", Resource: "resource", App: "webapp", Static: "static",
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
// read-only and may be shared; a reload builds another.
//
// Static routes are found by pattern: a name itself, ".a.test" for "*.a.test",
// which is a part of every name that it covers, and "" for "*".
type Table struct {
	cluster string
	owners  map[string]owner
}

// owner is what static routes want of one pattern.
type owner struct {
	any int32            // the route for any offer, or noRoute
	ids map[string]int32 // the routes for single ids
}

const noRoute = -1

// MatchError is what a static route claims and cannot have.
type MatchError struct {
	Route int  // its position
	Name  int  // the position in Match.SNI, or in Match.ALPN
	ALPN  bool // the fault is an id's
	Fact  string
}

// Error names the route by its position.
func (e *MatchError) Error() string { return fmt.Sprintf("route %d: %s", e.Route, e.Fact) }

// MatchErrors are all such claims, in the order of the routes.
type MatchErrors []*MatchError

// Error has a line for each.
func (e MatchErrors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// NewTable builds the table. cluster may be empty: then there are only static
// routes. Two routes that could claim the same hello are an error, and so is one
// that claims a name of the cluster's own: MatchErrors says which.
func NewTable(cluster string, static []Match) (*Table, error) {
	t := &Table{owners: make(map[string]owner, len(static))}
	if cluster != "" {
		name, ok := NormalName(cluster)
		if !ok {
			return nil, fmt.Errorf("cluster %q: not a host name", cluster)
		}
		t.cluster = name
	}
	var faults MatchErrors
	for i, m := range static {
		faults = t.addRoute(int32(i), m, faults)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return t, nil
}

func (t *Table) addRoute(i int32, m Match, faults MatchErrors) MatchErrors {
	if len(m.SNI) == 0 {
		return append(faults, &MatchError{Route: int(i), Fact: "no server name to match"})
	}
	for j, id := range m.ALPN {
		if len(id) == 0 || len(id) > maxID {
			return append(faults, &MatchError{Route: int(i), Name: j, ALPN: true, Fact: fmt.Sprintf("protocol %q: an id has 1 to %d bytes", id, maxID)})
		}
	}
	for j, sni := range m.SNI {
		pattern, err := t.pattern(sni)
		if err == nil {
			err = t.add(pattern, i, m.ALPN)
		}
		if err != nil {
			faults = append(faults, &MatchError{Route: int(i), Name: j, Fact: fmt.Sprintf("server name %q: %v", sni, err)})
		}
	}
	return faults
}

// pattern is the key of a server name as the configuration writes it.
func (t *Table) pattern(sni string) (string, error) {
	if sni == "*" {
		return "", nil
	}
	rest, wildcard := strings.CutPrefix(sni, "*.")
	name, ok := NormalName(rest)
	if !ok {
		return "", errors.New("not a host name")
	}
	if t.owns(name, wildcard) {
		return "", errors.New("belongs to the cluster")
	}
	if wildcard {
		return "." + name, nil
	}
	return name, nil
}

func (t *Table) add(pattern string, i int32, alpn []string) error {
	o, found := t.owners[pattern]
	if !found {
		o.any = noRoute
	}
	if len(alpn) == 0 {
		if o.any != noRoute && o.any != i {
			return fmt.Errorf("any protocol: route %d has it too", o.any)
		}
		o.any = i
	}
	if len(alpn) > 0 && o.ids == nil {
		o.ids = make(map[string]int32, len(alpn))
	}
	for _, id := range alpn {
		if other, taken := o.ids[id]; taken && other != i {
			return fmt.Errorf("protocol %q: route %d has it too", id, other)
		}
		o.ids[id] = i
	}
	t.owners[pattern] = o
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

// Route decides. The strictest name wins: an exact static route and the
// cluster's own name, a static wildcard, the names below the cluster, the static
// default; and who owns a name decides alone, so a protocol that it does not speak is refused and never falls to a
// wider rule.
func (t *Table) Route(h *Hello) Route {
	s := search{table: t, hello: h}
	return s.route()
}

// search is one use of a table. Invariant: how many probes it makes depends on
// the hello alone, at most three for the name and one for each offered id, and
// never on how many routes there are.
type search struct {
	table  *Table
	hello  *Hello
	probes int // of the table's maps
}

func (s *search) route() Route {
	name, cluster := s.hello.ServerName(), s.table.cluster
	if len(name) == 0 && cluster != "" {
		return own(s.hello) // no name, or an IP literal: the cluster itself
	}
	if len(name) > 0 {
		if o, ok := s.owner(name); ok {
			return s.static(o)
		}
		if cluster != "" && string(name) == cluster {
			return own(s.hello)
		}
		if above := above(name); len(above) > 0 {
			if o, ok := s.owner(above); ok {
				return s.static(o)
			}
		}
		if rest, ok := under(name, cluster); ok {
			return below(rest, s.hello)
		}
	}
	if o, ok := s.owner(nil); ok {
		return s.static(o)
	}
	return refuse(UnrecognizedName)
}

func (s *search) owner(pattern []byte) (o owner, ok bool) {
	s.probes++
	o, ok = s.table.owners[string(pattern)]
	return o, ok
}

// static picks among the routes of one pattern: the client's first id that one
// of them lists, else the one for any offer.
func (s *search) static(o owner) Route {
	if len(o.ids) > 0 {
		for list := s.hello.list(); len(list.rest) > 0; {
			s.probes++
			if i, ok := o.ids[string(list.vector8())]; ok {
				return Route{Class: Static, Index: int(i)}
			}
		}
	}
	if o.any != noRoute {
		return Route{Class: Static, Index: int(o.any)}
	}
	return refuse(NoApplicationProtocol)
}

// above is the part of a name that a wildcard is found by: from the first dot on.
func above(name []byte) []byte {
	if i := bytes.IndexByte(name, '.'); i >= 0 {
		return name[i:]
	}
	return nil
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
	case "kube":
		return offers == 0 || only(offers, idHTTP, idHTTP|idHTTPOther) // kubectl names none for exec, attach and port-forward
	case "app":
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

func refuse(a Alert) Route { return Route{Class: Refuse, Alert: a} }
