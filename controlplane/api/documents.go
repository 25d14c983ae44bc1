package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/rbac"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const maxDocument = 512 << 10

// Kinds of documents.
const (
	kindRole = "role"
	kindUser = "user"
	kindLock = "lock"
)

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
}

// userDocument is a local user, as Teleport has it.
type userDocument struct {
	header
	Spec struct {
		Roles  []string            `json:"roles"`
		Traits map[string][]string `json:"traits,omitempty"`
	} `json:"spec"`
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
	if d.Spec.Target == (lockDocument{}).Spec.Target {
		return invalid("a lock needs a target: user, role, login, server_id, mfa_device or access_request")
	}
	return nil
}

// strict reads a document whose every field is known: one that is not could be
// a restriction that nobody obeys.
func strict(doc []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return invalid(strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
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
		return h, invalid("not a document: " + err.Error())
	}
	if h.Metadata.Name == "" || len(h.Metadata.Name) > 128 || strings.ContainsFunc(h.Metadata.Name, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
		return h, invalid(fmt.Sprintf("metadata.name: %q is not a name of printable ASCII without spaces and slashes", h.Metadata.Name))
	}
	return h, nil
}

// put stores a document of any kind. The caller has been checked.
func (s *Server) put(ctx context.Context, c Caller, req *sallyportv1.PutDocumentRequest) (*sallyportv1.PutDocumentResponse, error) {
	doc := []byte(req.GetDocument())
	h, err := headerOf(doc)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.PutDocumentResponse{Kind: h.Kind, Name: h.Metadata.Name}
	switch h.Kind {
	case kindRole:
		err = s.putRole(ctx, c, req, resp)
	case kindUser:
		err = s.putUser(ctx, c, req, resp)
	case kindLock:
		err = s.putLock(ctx, c, req, resp)
	default:
		err = invalid(fmt.Sprintf("kind %q: this version knows role, user and lock", h.Kind))
	}
	if err != nil {
		return nil, err
	}
	return resp, s.state.reload(ctx)
}

func (s *Server) putRole(ctx context.Context, c Caller, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	r, warnings, err := rbac.ParseRole([]byte(req.GetDocument()))
	if err != nil {
		return err
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
	resp.Created, err = s.store(ctx, rolePrefix+r.Name(), r.JSON(), req.GetOverwrite())
	if err != nil {
		return err
	}
	return s.emit(ctx, c, changed(resp.GetCreated(), audit.RoleCreate, audit.RoleCreateCode, audit.RoleUpdate, audit.RoleUpdateCode, r.Name()))
}

func changed(created bool, newName, newCode, oldName, oldCode, subject string) sallyport.Event {
	e := sallyport.Event{Name: oldName, Code: oldCode, Fields: map[string]any{"name": subject}}
	if created {
		e.Name, e.Code = newName, newCode
	}
	return e
}

func (s *Server) putLock(ctx context.Context, c Caller, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	var d lockDocument
	if err := strict([]byte(req.GetDocument()), &d); err != nil {
		return err
	}
	if err := d.check(); err != nil {
		return err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if resp.Created, err = s.store(ctx, lockPrefix+d.Metadata.Name, b, req.GetOverwrite()); err != nil {
		return err
	}
	return s.emit(ctx, c, sallyport.Event{Name: audit.LockCreate, Code: audit.LockCreateCode, Fields: map[string]any{"name": d.Metadata.Name, "target": targetText(d)}})
}

func targetText(d lockDocument) string {
	b, _ := json.Marshal(d.Spec.Target)
	return string(b)
}

func (s *Server) putUser(ctx context.Context, c Caller, req *sallyportv1.PutDocumentRequest, resp *sallyportv1.PutDocumentResponse) error {
	var d userDocument
	if err := strict([]byte(req.GetDocument()), &d); err != nil {
		return err
	}
	if err := s.rolesExist(d.Spec.Roles); err != nil {
		return err
	}
	u := login.User{Name: d.Metadata.Name, Roles: d.Spec.Roles, Traits: d.Spec.Traits}
	_, err := s.cfg.Users.CreateUser(ctx, u, defaultLinkTTL)
	resp.Created = err == nil
	if errors.Is(err, sallyport.ErrExists) && req.GetOverwrite() {
		u.Revision = store.Any
		_, err = s.cfg.Users.UpdateUser(ctx, u)
	}
	if err != nil {
		return err
	}
	return s.emit(ctx, c, changed(resp.GetCreated(), audit.UserCreate, audit.UserCreateCode, audit.UserUpdate, audit.UserUpdateCode, u.Name))
}

// rolesExist refuses names of roles that are not there: a typing error would
// lock the user out, or grant when somebody makes that role later.
func (s *Server) rolesExist(names []string) error {
	for _, name := range names {
		if _, ok := s.state.view().policy.Role(name); !ok {
			return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("role %q does not exist", name), Hint: "sallyctl get roles --format=text"}
		}
	}
	return nil
}

func (s *Server) store(ctx context.Context, key string, value []byte, overwrite bool) (created bool, err error) {
	_, err = s.cfg.Store.Apply(ctx, store.Op{Key: key, Value: value, Expect: store.Absent})
	if errors.Is(err, sallyport.ErrExists) {
		if !overwrite {
			return false, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: strings.Replace(key, "/", " ", 1) + " exists", Hint: "use --force to replace it"}
		}
		_, err = s.cfg.Store.Apply(ctx, store.Op{Key: key, Value: value, Expect: store.Any})
		return false, err
	}
	return err == nil, err
}

// get returns documents of a kind.
func (s *Server) get(ctx context.Context, kind, name string) ([]string, error) {
	switch kind {
	case kindRole:
		return s.stored(ctx, rolePrefix, name)
	case kindLock:
		return s.stored(ctx, lockPrefix, name)
	case kindUser:
		return s.users(ctx, name)
	}
	return nil, invalid(fmt.Sprintf("kind %q: this version knows role, user and lock", kind))
}

func (s *Server) stored(ctx context.Context, prefix, name string) ([]string, error) {
	if name != "" {
		it, err := s.cfg.Store.Get(ctx, prefix+name)
		if err != nil {
			return nil, missing(strings.TrimSuffix(prefix, "/"), name, err)
		}
		return []string{string(it.Value)}, nil
	}
	items, _, err := s.cfg.Store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, it := range items {
		out = append(out, string(it.Value))
	}
	return out, nil
}

func missing(kind, name string, err error) error {
	if errors.Is(err, sallyport.ErrNotFound) {
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("%s %q does not exist", kind, name), Hint: "sallyctl get " + kind + "s --format=text"}
	}
	return err
}

func (s *Server) users(ctx context.Context, name string) ([]string, error) {
	all, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range all {
		if name != "" && u.Name != name {
			continue
		}
		d := userDocument{header: header{Kind: kindUser, Version: "v2", Metadata: metadata{Name: u.Name}}}
		d.Spec.Roles, d.Spec.Traits = u.Roles, u.Traits
		b, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		out = append(out, string(b))
	}
	if name != "" && len(out) == 0 {
		return nil, missing(kindUser, name, sallyport.ErrNotFound)
	}
	return out, nil
}

// remove deletes a document. The caller has been checked.
func (s *Server) remove(ctx context.Context, c Caller, kind, name string) error {
	var e sallyport.Event
	var err error
	switch kind {
	case kindRole:
		if users := s.holders(ctx, name); len(users) > 0 {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("role %q is held by %s", name, strings.Join(users, ", ")), Hint: "take it from them first"}
		}
		_, err = s.cfg.Store.Apply(ctx, store.Op{Key: rolePrefix + name, Delete: true, Expect: store.Any})
		e = sallyport.Event{Name: audit.RoleDelete, Code: audit.RoleDeleteCode}
	case kindLock:
		_, err = s.cfg.Store.Apply(ctx, store.Op{Key: lockPrefix + name, Delete: true, Expect: store.Any})
		e = sallyport.Event{Name: audit.LockDelete, Code: audit.LockDeleteCode}
	case kindUser:
		err = s.cfg.Users.DeleteUser(ctx, name)
		e = sallyport.Event{Name: audit.UserDelete, Code: audit.UserDeleteCode}
	default:
		return invalid(fmt.Sprintf("kind %q: this version knows role, user and lock", kind))
	}
	if err != nil {
		return missing(kind, name, err)
	}
	e.Fields = map[string]any{"name": name}
	return errors.Join(s.emit(ctx, c, e), s.state.reload(ctx))
}

func (s *Server) holders(ctx context.Context, role string) []string {
	all, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, u := range all {
		for _, r := range u.Roles {
			if r == role {
				out = append(out, u.Name)
			}
		}
	}
	return out
}
