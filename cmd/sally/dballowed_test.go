package main

import (
	"errors"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestDatabaseAllowed: a login to a database as somebody whom no role allows was saved.
func TestDatabaseAllowed(t *testing.T) {
	for _, tt := range []struct {
		d    database
		good bool
	}{
		{database{user: "reader", dbname: "shop", users: []string{"reader", "writer"}, names: []string{"shop"}}, true},
		{database{users: []string{"reader"}, names: []string{"shop"}}, true},
		{database{user: "nosuch", dbname: "any"}, true}, // auth has not said
		{database{user: "nosuch", users: []string{"*"}, dbname: "any", names: []string{"*"}}, true},
		{database{user: "app_1", users: []string{"reader", "app_*"}}, true},
		{database{user: "nosuch", users: []string{"reader", "writer"}}, false},
		{database{user: "reader", dbname: "hr", users: []string{"reader"}, names: []string{"shop"}}, false},
	} {
		if err := tt.d.allowed(); (err == nil) != tt.good || err != nil && !errors.Is(err, sallyport.ErrDenied) {
			t.Errorf("%+v: %v", tt.d, err)
		}
	}
}
