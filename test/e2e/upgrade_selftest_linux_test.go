package e2e

import (
	"encoding/json"
	"testing"
)

// TestUpgradeSelftest: upgrades lose nothing while connections come and go by the
// hundred, in the middle of the copy too. What stands still for how long is no matter
// here: the load has the same processors.
func TestUpgradeSelftest(t *testing.T) {
	var got struct {
		Kept, Lost, Corrupted, Refused, Upgrades int
		Served                                   uint64
	}
	const kept, upgrades = 1500, 6
	r := newPerson(t).try("", "sallyport", "selftest", "upgrade", "--connections=1500", "--busy=10", "--rate=1500", "--upgrades=6", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.code != 0 {
		t.Fatalf("exit code %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	if got.Kept != kept || got.Lost+got.Corrupted+got.Refused != 0 || got.Upgrades != upgrades || got.Served == 0 {
		t.Errorf("%+v\n%s", got, r.stdout)
	}
}
