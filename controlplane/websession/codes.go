package websession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// Purpose is what a one-time code is good for.
type Purpose string

const (
	ForProgram Purpose = "program" // certificates for the keys of a program
	ForApp     Purpose = "app"     // a session at an application's origin
)

// Code is what stands behind a one-time code.
type Code struct {
	Purpose   Purpose
	User      string
	Session   string // id
	Challenge string // of the verifier that must come with the code
	Keys      string // for a program: KeysHash
	App       string // for an application: its name
	From      string // for an application: the network that the code has to come from
}

type codeRecord struct {
	Version   int       `json:"version"`
	Purpose   Purpose   `json:"purpose"`
	User      string    `json:"user"`
	Session   string    `json:"session"`
	Challenge string    `json:"challenge"`
	Keys      string    `json:"keys,omitempty"`
	App       string    `json:"app,omitempty"`
	From      string    `json:"from,omitempty"`
	Expires   time.Time `json:"expires"`
}

func codeKey(code string) string { return "webcodes/" + hashed("code", code) }

// PutCode makes a code that is good for a minute, for the session that c names. Any
// page can lead a browser to where codes are made: one session makes a bounded number,
// and more are ErrExhausted. A session that has ended is ErrUnauthorized.
func (s *Sessions) PutCode(ctx context.Context, c Code) (string, error) {
	if !ValidCode(c.Challenge) {
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the challenge is not the hash of a verifier", Hint: "begin again"}
	}
	if !validID(c.Session) {
		return "", Gone()
	}
	var code string
	var lease store.LeaseID // of all tries
	err := race(ctx, func() (err error) {
		code, err = s.putCode(ctx, c, &lease)
		return err
	})
	if err != nil {
		return "", err
	}
	return code, nil
}

// putCode writes a code, and its end to its session, unless others were faster.
func (s *Sessions) putCode(ctx context.Context, c Code, lease *store.LeaseID) (string, error) {
	rec, it, err := s.read(ctx, ownerOf(c.User), c.Session)
	if err != nil {
		return "", err
	}
	now := s.now().UTC()
	ends := now.Add(CodeTTL)
	// An end that is further away was written before the clock went back.
	rec.Codes = slices.DeleteFunc(rec.Codes, func(t time.Time) bool { return !now.Before(t) || t.After(ends) })
	if len(rec.Codes) >= maxCodes {
		return "", &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "this browser has begun too many logins within a minute", Hint: "wait a minute, and open the page again"}
	}
	rec.Codes = append(rec.Codes, ends)
	session, err := store.Keep(it.Value, rec)
	if err != nil {
		return "", err
	}
	value, err := json.Marshal(codeRecord{Version: recordVersion, Purpose: c.Purpose, User: c.User, Session: c.Session, Challenge: c.Challenge,
		Keys: c.Keys, App: c.App, From: c.From, Expires: ends})
	if err != nil {
		return "", err
	}
	if *lease == 0 {
		if *lease, err = s.store.Grant(ctx, CodeTTL+leaseSlack); err != nil {
			return "", err
		}
	}
	code := newCode()
	_, err = s.store.Apply(ctx, store.Op{Key: it.Key, Value: session, Expect: it.Revision, Lease: it.Lease}, store.Op{Key: codeKey(code), Value: value, Lease: *lease})
	return code, err
}

// badCode is the one answer to a code that is not good.
func badCode() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "this one-time code is not good, or not any more", Hint: "log in again"}
}

// Proof is what comes with a code.
type Proof struct {
	Purpose  Purpose
	Verifier string
	Keys     string
	App      string
	From     string
}

// TakeCode uses a code up, right or wrong: of several who bring it one is
// answered, and only with what it was made for.
func (s *Sessions) TakeCode(ctx context.Context, code string, p Proof) (Code, error) {
	if !ValidCode(code) {
		return Code{}, badCode()
	}
	it, err := s.store.Get(ctx, codeKey(code))
	if errors.Is(err, sallyport.ErrNotFound) {
		return Code{}, badCode()
	}
	if err != nil {
		return Code{}, err
	}
	var rec codeRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return Code{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	if rec.Version != recordVersion {
		return Code{}, fmt.Errorf("%s: version %d is not known", it.Key, rec.Version)
	}
	_, err = s.store.Apply(ctx, store.Op{Key: it.Key, Delete: true, Expect: it.Revision})
	if raced(err) {
		return Code{}, badCode()
	}
	if err != nil {
		return Code{}, err
	}
	now := s.now()
	if !now.Before(rec.Expires) || rec.Expires.Sub(now) > CodeTTL || rec.Purpose != p.Purpose || !ValidCode(p.Verifier) || !same(rec.Challenge, Challenge(p.Verifier)) ||
		!same(rec.Keys, p.Keys) || rec.App != p.App || rec.From != p.From {
		return Code{}, badCode()
	}
	return Code{Purpose: rec.Purpose, User: rec.User, Session: rec.Session, Challenge: rec.Challenge, Keys: rec.Keys, App: rec.App, From: rec.From}, nil
}
