package jump

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
)

// TestRefusalsOfManyConnections: who connects anew has not more refusals written
// down, and who has had his is forgotten in time.
func TestRefusalsOfManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		enter := func(name string) *place {
			p, problem := s.enter(sallyport.Identity{Name: name})
			if problem != nil {
				t.Fatal(problem)
			}
			return p
		}
		written := 0
		for range 50 {
			p := enter("alice")
			for range 20 {
				if p.user.refusals.take(time.Now()) {
					written++
				}
			}
			p.leave()
		}
		if written != burst {
			t.Errorf("%d refusals in no time", written)
		}
		enter("bob").leave()
		if len(s.users) != 1 {
			t.Errorf("%d users are remembered", len(s.users))
		}
		time.Sleep(burst * time.Second)
		enter("bob").leave()
		if len(s.users) != 0 {
			t.Errorf("%d users are remembered who have all that anybody has", len(s.users))
		}
	})
}
