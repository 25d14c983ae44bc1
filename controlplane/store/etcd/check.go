package etcd

import (
	"fmt"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// below turns a path into the prefix of all keys under it.
func below(path string) string {
	if path == "" || strings.HasSuffix(path, "/") {
		return path
	}
	return path + "/"
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return checkKey(strings.TrimSuffix(prefix, "/"))
}

func checkKey(key string) error {
	switch {
	case key == "":
		return invalid("empty key")
	case len(key) > store.MaxKey:
		return invalid(fmt.Sprintf("key of %d bytes: at most %d", len(key), store.MaxKey))
	case key[0] == '/' || key[len(key)-1] == '/':
		return invalid("key begins or ends with a slash")
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return invalid("key holds a byte that is not printable ASCII")
		}
	}
	return nil
}

func checkOps(ops []store.Op) error {
	if len(ops) == 0 || len(ops) > store.MaxOps {
		return invalid(fmt.Sprintf("%d changes at once: want 1 to %d", len(ops), store.MaxOps))
	}
	size := 0
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		if err := checkOp(op); err != nil {
			return err
		}
		if seen[op.Key] {
			return invalid("key " + op.Key + " twice in one change")
		}
		seen[op.Key] = true
		size += len(op.Key) + len(op.Value)
	}
	if size > store.MaxApply {
		return invalid(fmt.Sprintf("change of %d bytes: at most %d", size, store.MaxApply))
	}
	return nil
}

func checkOp(op store.Op) error {
	if err := checkKey(op.Key); err != nil {
		return err
	}
	switch {
	case len(op.Value) > store.MaxValue:
		return invalid(fmt.Sprintf("value of %d bytes: at most %d", len(op.Value), store.MaxValue))
	case op.Expect < store.Any:
		return invalid("negative revision expected")
	case op.Delete && op.Expect == store.Absent:
		return invalid("deletion of a key that must not exist")
	case op.Delete && op.Check:
		return invalid("a key to delete and only to check")
	case (op.Delete || op.Check) && (op.Value != nil || op.Lease != 0):
		return invalid("deletion or check with a value or a lease")
	}
	return nil
}

func invalid(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}
