package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/rbac"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// Bounds of what administrators can store. Together they keep a snapshot far
// below what a host takes (signed.MaxPayload).
const (
	maxDocument    = 512 << 10
	maxName        = 128
	maxDescription = 512
	maxLabels      = 64
	maxLabel       = 256
	maxLockText    = 256 // of each part of a target
	maxLockMessage = 1024
	maxLocks       = 10000
	maxRoles       = 5000
	maxRoleBytes   = 16 << 20 // of all roles
)

// Kinds of documents.
const (
	kindRole = "role"
	kindUser = "user"
	kindLock = "lock"
)

// Kinds of what is stored and is no document. An agent's name, to rules, is the id of
// its host, and gateways are of this kind too.
const (
	kindToken = "token"
	kindAgent = "agent"
)

// documentVersion is that of users and locks; roles have many.
const documentVersion = "v2"

// header is what every document has.
type header struct {
	Kind     string   `json:"kind"`
	Version  string   `json:"version"`
	Metadata metadata `json:"metadata"`
}

type metadata struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Expires     *time.Time        `json:"expires,omitempty"`

	exported
}

// exported is what Teleport writes into the metadata of everything that it exports.
// Nothing depends on it here, and it is not kept.
type exported struct {
	ID        any `json:"id,omitempty"`
	Revision  any `json:"revision,omitempty"`
	Namespace any `json:"namespace,omitempty"`
}

// userDocument is a local user, as Teleport has it.
type userDocument struct {
	header
	Spec struct {
		Roles  []string            `json:"roles"`
		Traits map[string][]string `json:"traits,omitempty"`

		// What Teleport exports besides. None of it grants anything, and it is not kept.
		Expires   *time.Time `json:"expires,omitempty"` // year 1: never
		Status    userStatus `json:"status,omitempty"`
		CreatedBy any        `json:"created_by,omitempty"`
		GitHub    any        `json:"github_identities,omitempty"`
		OIDC      any        `json:"oidc_identities,omitempty"`
		SAML      any        `json:"saml_identities,omitempty"`
	} `json:"spec"`
}

// userStatus is what Teleport says of a user's standing: a mapping of which one field
// matters here.
type userStatus struct{ locked bool }

// UnmarshalJSON takes whatever stands there.
func (u *userStatus) UnmarshalJSON(b []byte) error {
	var s struct {
		IsLocked any `json:"is_locked"`
	}
	_ = json.Unmarshal(b, &s)
	u.locked = s.IsLocked == true
	return nil
}

// notKept are warnings of what somebody may count on and is not kept.
func (d *userDocument) notKept() (warnings []string) {
	for field, there := range map[string]bool{
		"metadata.labels": len(d.Metadata.Labels) > 0, "metadata.description": d.Metadata.Description != "",
		"spec.github_identities": filled(d.Spec.GitHub), "spec.oidc_identities": filled(d.Spec.OIDC), "spec.saml_identities": filled(d.Spec.SAML),
	} {
		if there {
			warnings = append(warnings, field+": not kept by this version")
		}
	}
	slices.Sort(warnings)
	if d.Spec.Status.locked {
		warnings = append(warnings, fmt.Sprintf("spec.status.is_locked: the user is not locked by it; sallyctl lock --user=%s does that", d.Metadata.Name))
	}
	return warnings
}

// filled says that a field of any shape has something in it.
func filled(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	}
	return true
}

// lockDocument is a lock, as Teleport has it.
type lockDocument struct {
	header
	Spec struct {
		Target struct {
			User          string `json:"user,omitempty"`
			Role          string `json:"role,omitempty"`
			Login         string `json:"login,omitempty"`
			ServerID      string `json:"server_id,omitempty"`
			MFADevice     string `json:"mfa_device,omitempty"`
			AccessRequest string `json:"access_request,omitempty"`
		} `json:"target"`
		Message string     `json:"message,omitempty"`
		Expires *time.Time `json:"expires,omitempty"`

		// What Teleport exports besides; not kept.
		CreatedAt any `json:"created_at,omitempty"`
		CreatedBy any `json:"created_by,omitempty"`
	} `json:"spec"`
}

func (d *lockDocument) wire() *sallyportv1.Lock {
	t := d.Spec.Target
	m := &sallyportv1.Lock{Name: d.Metadata.Name, Message: d.Spec.Message, User: t.User, Role: t.Role, Login: t.Login,
		ServerId: t.ServerID, Mfa: t.MFADevice, Request: t.AccessRequest}
	if d.Spec.Expires != nil {
		m.Expires = d.Spec.Expires.Unix()
	}
	return m
}

func (d *lockDocument) check() error {
	t := d.Spec.Target
	if t == (lockDocument{}).Spec.Target {
		return invalid("a lock needs a target: user, role, login, server_id, mfa_device or access_request")
	}
	for _, s := range []string{t.User, t.Role, t.Login, t.ServerID, t.MFADevice, t.AccessRequest} {
		if !text(s, maxLockText) {
			return invalid(fmt.Sprintf("a part of the lock's target is longer than %d bytes or not printable", maxLockText))
		}
	}
	if !text(d.Spec.Message, maxLockMessage) {
		return invalid(fmt.Sprintf("the lock's message is longer than %d bytes or not printable", maxLockMessage))
	}
	if e := d.Spec.Expires; e != nil && e.Unix() <= 0 {
		return invalid("the lock's end is before 1970")
	}
	return nil
}

// check refuses what is too long, and an end that nobody would obey.
func (h header) check() error {
	m := h.Metadata
	if !validName(m.Name) {
		return invalid(fmt.Sprintf("metadata.name: %q is not a name of 1 to %d printable ASCII characters without blanks and slashes", trim(m.Name), maxName))
	}
	if !text(m.Description, maxDescription) || len(m.Labels) > maxLabels {
		return invalid("metadata: the description is too long or not printable, or there are too many labels")
	}
	for k, v := range m.Labels {
		if k == "" || !text(k, maxLabel) || !text(v, maxLabel) {
			return invalid(fmt.Sprintf("metadata.labels: %q is empty, too long or not printable", trim(k)))
		}
	}
	if (h.Kind == kindUser || h.Kind == kindLock) && h.Version != "" && h.Version != documentVersion {
		return invalid(fmt.Sprintf("version %q of kind %s is not known; this is %s", trim(h.Version), trim(h.Kind), documentVersion))
	}
	if m.Expires != nil && h.Kind != kindRole {
		return invalid("metadata.expires: only roles end by it; for a lock set spec.expires")
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' })
}

func text(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// trim keeps a caller's own words short in what he is told.
func trim(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// strict reads a document whose every field is known: one that is not could be
// a restriction that nobody obeys.
func strict(doc []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	return unread(dec.Decode(v))
}

// hinted adds to a fault what a document may say.
func hinted(err error, hint string) error {
	var p *sallyport.Problem
	if errors.As(err, &p) && p.Hint == "" {
		return &sallyport.Problem{Kind: p.Kind, Fact: p.Fact, Hint: hint, Cause: err}
	}
	return err
}

// unread says what is wrong with a document in the words of documents, not in those
// of Go.
func unread(err error) error {
	if err == nil {
		return nil
	}
	var kind *json.UnmarshalTypeError
	var moment *time.ParseError
	switch {
	case errors.As(err, &kind) && kind.Field == "":
		return invalid("a document is a mapping with kind, version, metadata and spec; this is of another kind: " + kind.Value)
	case errors.As(err, &kind):
		return invalid(fmt.Sprintf("%s: not what belongs there, but of the kind %s", strings.TrimPrefix(strings.TrimPrefix(kind.Field, "header"), "."), kind.Value))
	case errors.As(err, &moment):
		return invalid(fmt.Sprintf("%s is not a time such as 2026-01-31T15:04:05Z", trim(moment.Value)))
	}
	return invalid(strings.TrimPrefix(err.Error(), "json: "))
}

func invalid(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}

func headerOf(doc []byte) (header, error) {
	var h header
	if len(doc) > maxDocument {
		return h, invalid(fmt.Sprintf("a document of %d bytes, at most %d", len(doc), maxDocument))
	}
	if err := json.Unmarshal(doc, &h); err != nil {
		return h, unread(err)
	}
	return h, h.check()
}

// put stores a document of any kind. The caller has been checked.
func (s *Server) put(ctx context.Context, h header, req *sallyportv1.PutDocumentRequest) (*sallyportv1.PutDocumentResponse, error) {
	resp := &sallyportv1.PutDocumentResponse{Kind: h.Kind, Name: h.Metadata.Name}
	var err error
	switch h.Kind {
	case kindRole:
		err = s.putRole(ctx, h, req, resp)
	case kindUser:
		err = s.putUser(ctx, req, resp)
	case kindLock:
		err = s.putLock(ctx, req, resp)
	default:
		err = unknownKind(h.Kind)
	}
	if err != nil {
		return nil, err
	}
	return resp, s.inForce(ctx)
}

// knownKind comes before the question who may: which kinds there are is no secret. Who
// names none is asked for his rights.
func knownKind(kind string) error {
	switch kind {
	case kindRole, kindUser, kindLock, "":
		return nil
	}
	return unknownKind(kind)
}

func unknownKind(kind string) error {
	return invalid(fmt.Sprintf("kind %q: this version knows role, user and lock", trim(kind)))
}

func (s *Server) putRole(ctx context.Context, h header, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	r, warnings, err := rbac.ParseRole([]byte(req.GetDocument()))
	if err != nil {
		return err
	}
	if r.Name() != h.Metadata.Name {
		return invalid("metadata.name: given more than once")
	}
	for _, w := range warnings {
		resp.Warnings = append(resp.Warnings, w.String())
	}
	if un := r.Unenforced(); len(un) > 0 {
		if !req.GetAcceptUnenforced() {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid,
				Fact: fmt.Sprintf("role %q restricts what this version does not enforce: %s", r.Name(), strings.Join(un, "; ")),
				Hint: "remove it, or store it with --accept-unenforced: what it affects is then denied"}
		}
		for _, u := range un {
			resp.Warnings = append(resp.Warnings, u+": not enforced by this version, so what it affects is denied")
		}
	}
	if err := s.roomForRole(r); err != nil {
		return err
	}
	resp.Created, err = s.store(ctx, write{key: rolePrefix + r.Name(), value: r.JSON(), overwrite: req.GetOverwrite()}, func(created bool) sallyport.Event {
		return changed(created, audit.RoleCreate, audit.RoleCreateCode, audit.RoleUpdate, audit.RoleUpdateCode, r.Name())
	})
	return err
}

func (s *Server) roomForRole(r *rbac.Role) error {
	count, size := 1, len(r.JSON())
	for _, old := range s.state.view().roles {
		if old.Name() != r.Name() {
			count, size = count+1, size+len(old.JSON())
		}
	}
	if count > maxRoles || size > maxRoleBytes {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: fmt.Sprintf("there would be %d roles of %d bytes; at most %d of %d bytes are possible", count, size, maxRoles, maxRoleBytes)}
	}
	return nil
}

func changed(created bool, newName, newCode, oldName, oldCode, subject string) sallyport.Event {
	e := sallyport.Event{Name: oldName, Code: oldCode, Fields: map[string]any{"name": subject}}
	if created {
		e.Name, e.Code = newName, newCode
	}
	return e
}

func (s *Server) putLock(ctx context.Context, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	var d lockDocument
	if err := strict([]byte(req.GetDocument()), &d); err != nil {
		return hinted(err, "spec of a lock: target (user, role, login, server_id, mfa_device, access_request), message, expires")
	}
	if err := d.check(); err != nil {
		return err
	}
	if len(s.state.view().locks) >= maxLocks && !req.GetOverwrite() {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: fmt.Sprintf("there are %d locks, which are the most", maxLocks), Hint: "remove those that have ended"}
	}
	if e := d.Spec.Expires; e != nil && !e.After(s.cfg.Now()) {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "spec.expires: " + e.UTC().Format(time.RFC3339) + " has passed: the lock would lock nothing", Hint: "leave it out, or name a time to come"}
	}
	d.Metadata.exported, d.Spec.CreatedAt, d.Spec.CreatedBy = exported{}, nil, nil
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if resp.Warnings, err = s.lockedNobody(ctx, &d); err != nil {
		return err
	}
	resp.Created, err = s.store(ctx, write{key: lockPrefix + d.Metadata.Name, value: b, overwrite: req.GetOverwrite(), reserve: true}, func(bool) sallyport.Event {
		return sallyport.Event{Name: audit.LockCreate, Code: audit.LockCreateCode, Fields: map[string]any{"name": d.Metadata.Name, "target": targetOf(&d)}}
	})
	return err
}

// lockedNobody says which parts of a lock's target are not there. A lock may be made
// before its user is; one that was meant for somebody else is not to be taken for done.
func (s *Server) lockedNobody(ctx context.Context, d *lockDocument) (warnings []string, err error) {
	t, now := d.Spec.Target, s.state.view()
	none := func(format string, args ...any) {
		warnings = append(warnings, fmt.Sprintf("spec.target."+format+": the lock stops nobody now", args...))
	}
	if _, ok := now.users[t.User]; t.User != "" && !ok {
		none("user: there is no user %q", t.User)
	}
	if _, ok := now.policy.Role(t.Role); t.Role != "" && !ok {
		none("role: there is no role %q", t.Role)
	}
	if t.ServerID == "" {
		return warnings, nil
	}
	_, err = s.cfg.Inventory.Host(ctx, t.ServerID)
	if errors.Is(err, sallyport.ErrNotFound) {
		none("server_id: no host has the id %q (sallyctl nodes ls --all)", t.ServerID)
		err = nil
	}
	return warnings, err
}

// targetOf is what a lock is for, as its document says it.
func targetOf(d *lockDocument) map[string]any {
	t := d.Spec.Target
	out := map[string]any{}
	for name, value := range map[string]string{"user": t.User, "role": t.Role, "login": t.Login, "server_id": t.ServerID,
		"mfa_device": t.MFADevice, "access_request": t.AccessRequest} {
		if value != "" {
			out[name] = value
		}
	}
	return out
}

func (s *Server) putUser(ctx context.Context, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	var d userDocument
	if err := strict([]byte(req.GetDocument()), &d); err != nil {
		return hinted(err, "spec of a user: roles, traits")
	}
	if e := d.Spec.Expires; e != nil && !e.IsZero() {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "spec.expires: users do not end by themselves in this version", Hint: "leave it out, and make a lock when the time has come"}
	}
	if err := s.rolesExist(d.Spec.Roles); err != nil {
		return err
	}
	resp.Warnings = d.notKept()
	u := login.User{Name: d.Metadata.Name, Roles: d.Spec.Roles, Traits: d.Spec.Traits}
	old, err := s.cfg.Users.GetUser(ctx, u.Name)
	resp.Created = errors.Is(err, sallyport.ErrNotFound)
	switch {
	case err == nil && !req.GetOverwrite():
		return exists(kindUser + " " + u.Name)
	case err != nil && !resp.Created:
		return err
	}
	u.Revision = old.Revision
	e := changed(resp.Created, audit.UserCreate, audit.UserCreateCode, audit.UserUpdate, audit.UserUpdateCode, u.Name)
	e.Fields["roles"] = u.Roles
	return s.change(ctx, e, func() error {
		if resp.Created {
			_, err = s.cfg.Users.CreateUser(ctx, u, defaultLinkTTL)
		} else {
			_, err = s.cfg.Users.UpdateUser(ctx, u)
		}
		return err
	})
}

// rolesExist refuses names of roles that are not there: a typing error would
// lock the user out, or grant when somebody makes that role later.
func (s *Server) rolesExist(names []string) error {
	for _, name := range names {
		if _, ok := s.state.view().policy.Role(name); !ok {
			return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("role %q does not exist", trim(name)), Hint: "sallyctl get roles --format=text"}
		}
	}
	return nil
}

// write is one document to store.
type write struct {
	key       string
	value     []byte
	overwrite bool
	reserve   bool // also when the store is full
}

// store records and writes a document over exactly what was read before, so
// that the record says what happened.
func (s *Server) store(ctx context.Context, w write, event func(created bool) sallyport.Event) (created bool, err error) {
	it, err := s.cfg.Store.Get(ctx, w.key)
	switch {
	case errors.Is(err, sallyport.ErrNotFound):
		created, it.Revision = true, store.Absent
	case err != nil:
		return false, err
	case !w.overwrite:
		return false, exists(strings.Replace(w.key, "/", " ", 1))
	}
	return created, s.change(ctx, event(created), func() error {
		_, err := s.cfg.Store.Apply(ctx, store.Op{Key: w.key, Value: w.value, Expect: it.Revision, Reserve: w.reserve})
		return err
	})
}

func exists(what string) error {
	return &sallyport.Problem{Kind: sallyport.ErrExists, Fact: what + " exists", Hint: "use --force to replace it"}
}

// get returns one document. The caller has been checked.
func (s *Server) get(ctx context.Context, kind, name string) (string, error) {
	var doc string
	var err error
	switch kind {
	case kindRole:
		doc, err = s.stored(ctx, rolePrefix, name)
	case kindLock:
		doc, err = s.stored(ctx, lockPrefix, name)
	case kindUser:
		var u login.User
		if u, err = s.cfg.Users.GetUser(ctx, name); err == nil {
			doc, err = documentOf(u)
		}
	default:
		err = unknownKind(kind)
	}
	return doc, missing(kind, name, err)
}

func (s *Server) stored(ctx context.Context, prefix, name string) (string, error) {
	if !validName(name) {
		return "", sallyport.ErrNotFound
	}
	it, err := s.cfg.Store.Get(ctx, prefix+name)
	return string(it.Value), err
}

// list returns the documents of a kind that may be shown, by name.
func (s *Server) list(ctx context.Context, kind string, may func(name string) bool) ([]string, error) {
	switch kind {
	case kindRole:
		return s.allStored(ctx, rolePrefix, may)
	case kindLock:
		return s.allStored(ctx, lockPrefix, may)
	case kindUser:
		return s.allUsers(ctx, may)
	}
	return nil, unknownKind(kind)
}

func (s *Server) allStored(ctx context.Context, prefix string, may func(name string) bool) ([]string, error) {
	items, _, err := s.cfg.Store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, it := range items {
		if may(strings.TrimPrefix(it.Key, prefix)) {
			out = append(out, string(it.Value))
		}
	}
	return out, nil
}

func missing(kind, name string, err error) error {
	if errors.Is(err, sallyport.ErrNotFound) {
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("%s %q does not exist", kind, trim(name)), Hint: "sallyctl get " + kind + "s --format=text"}
	}
	return err
}

func (s *Server) allUsers(ctx context.Context, may func(name string) bool) ([]string, error) {
	all, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range all {
		if !may(u.Name) {
			continue
		}
		doc, err := documentOf(u)
		if err != nil {
			return nil, err
		}
		out = append(out, doc)
	}
	return out, nil
}

func documentOf(u login.User) (string, error) {
	d := userDocument{header: header{Kind: kindUser, Version: documentVersion, Metadata: metadata{Name: u.Name}}}
	d.Spec.Roles, d.Spec.Traits = u.Roles, u.Traits
	b, err := json.Marshal(d)
	return string(b), err
}

// remove deletes a document. The caller has been checked.
func (s *Server) remove(ctx context.Context, kind, name string) error {
	if !validName(name) {
		return missing(kind, name, sallyport.ErrNotFound)
	}
	var err error
	switch kind {
	case kindRole:
		err = s.removeRole(ctx, name)
	case kindLock:
		err = s.erase(ctx, lockPrefix+name, sallyport.Event{Name: audit.LockDelete, Code: audit.LockDeleteCode, Fields: map[string]any{"name": name}})
	case kindUser:
		err = s.removeUser(ctx, name)
	default:
		return unknownKind(kind)
	}
	if err != nil {
		return missing(kind, name, err)
	}
	return s.inForce(ctx)
}

func (s *Server) removeRole(ctx context.Context, name string) error {
	users, err := s.holders(ctx, name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("role %q is held by %s", name, strings.Join(users[:min(len(users), 10)], ", ")), Hint: "take it from them first: sallyctl get user/NAME, then sallyctl create --force"}
	}
	return s.erase(ctx, rolePrefix+name, sallyport.Event{Name: audit.RoleDelete, Code: audit.RoleDeleteCode, Fields: map[string]any{"name": name}})
}

func (s *Server) removeUser(ctx context.Context, name string) error {
	if _, err := s.cfg.Users.GetUser(ctx, name); err != nil {
		return err
	}
	e := sallyport.Event{Name: audit.UserDelete, Code: audit.UserDeleteCode, Fields: map[string]any{"name": name}}
	return s.change(ctx, e, func() error { return s.cfg.Users.DeleteUser(ctx, name) })
}

// erase records and deletes what is there.
func (s *Server) erase(ctx context.Context, key string, e sallyport.Event) error {
	it, err := s.cfg.Store.Get(ctx, key)
	if err != nil {
		return err
	}
	return s.change(ctx, e, func() error {
		_, err := s.cfg.Store.Apply(ctx, store.Op{Key: key, Delete: true, Expect: it.Revision})
		return err
	})
}

func (s *Server) holders(ctx context.Context, role string) ([]string, error) {
	all, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range all {
		if slices.Contains(u.Roles, role) {
			out = append(out, u.Name)
		}
	}
	return out, nil
}
