package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
)

// Caller is who makes a call.
type Caller struct {
	Identity sallyport.Identity // zero for nobody and for web visitors
	Web      bool               // came by a gateway's web origin; Identity is not the visitor's
	Via      sallyport.Identity // of the gateway that speaks for a web visitor
	Addr     netip.AddrPort     // the other end, or the visitor as the gateway tells

	// Refusal, when set, is why a holder of a good certificate may call nothing
	// on this connection. It is told to him, and not to strangers.
	Refusal *sallyport.Problem

	// EndedKey, when set, is the public key (PKIX DER) of a host whose certificate
	// has ended: it has proved that it holds the key, and may only ask for a new
	// certificate. See hostService.mayReturn.
	EndedKey []byte
}

type callerKey struct{}

// WithCaller returns a context that carries the caller. Only listeners make it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns nobody when no listener said who it is.
func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// VisitorAddr is where a visitor of the web origin comes from.
func VisitorAddr(ctx context.Context) netip.Addr { return callerOf(ctx).Addr.Addr().Unmap() }

// LocalAdmin is the user id of who calls by the admin socket; ok is false for
// everybody else.
func LocalAdmin(ctx context.Context) (uid string, ok bool) {
	c := callerOf(ctx)
	return c.Identity.Name, c.Identity.Kind == sallyport.KindLocalAdmin
}

// name is how the audit log calls the caller.
func (c Caller) name() string {
	switch c.Identity.Kind {
	case "":
		return ""
	case sallyport.KindUser:
		return c.Identity.Name
	default:
		return string(c.Identity.Kind) + ":" + c.Identity.Name
	}
}

// userKind is how the audit log calls the sort of caller.
func (c Caller) userKind() string {
	if c.Identity.Kind == sallyport.KindUser {
		return "human"
	}
	return string(c.Identity.Kind)
}

// guard holds the table at the door of every method.
type guard struct {
	rules    map[string]rule
	standing func(ctx context.Context, c Caller) error                        // whoever has a certificate, whatever the method
	check    func(ctx context.Context, c Caller, r rule) error                // users' roles
	denied   func(ctx context.Context, c Caller, procedure string, err error) // records
}

// admit decides by the table. What is not in it is refused.
func (g *guard) admit(ctx context.Context, procedure string) error {
	c := callerOf(ctx)
	err := g.decide(ctx, c, procedure)
	// A host that was off for long, or was removed, may ask and ask: its end is no
	// news, and others' refusals would not be recorded for it.
	if err != nil && (c.EndedKey == nil || !errors.Is(err, sallyport.ErrUnauthorized)) {
		g.denied(ctx, c, procedure, err)
	}
	return refusal(err)
}

func (g *guard) decide(ctx context.Context, c Caller, procedure string) error {
	r, ok := g.rules[procedure]
	if !ok {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "no such method, or nobody may call it"}
	}
	if r.who&audienceOf(c) == 0 {
		if audienceOf(c) == endedHost {
			return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "this host's certificate has ended: it may ask for a new one, and for nothing else", Hint: "the host asks by itself; its log says why it has none"}
		}
		kind := sallyport.ErrDenied
		if audienceOf(c)&(nobody|webVisitor) != 0 {
			kind = sallyport.ErrUnauthorized
		}
		return &sallyport.Problem{Kind: kind, Fact: "this method is for " + r.who.String() + " only"}
	}
	if err := g.standing(ctx, c); err != nil {
		return err
	}
	if r.kind == "" || r.kind == ofDocument {
		return nil
	}
	return g.check(ctx, c, r)
}

// gate is the guard before the first byte of a request is read: to decode one
// costs far more than to send it.
func (g *guard) gate(errs *unexpected) connect.RequestGateFunc {
	return func(ctx context.Context, spec connect.Spec, _ connect.Peer, _ http.Header) (context.Context, error) {
		judging, cancel := context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
		return ctx, errs.hide(spec.Procedure, g.admit(judging, spec.Procedure))
	}
}
