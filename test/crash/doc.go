// Package crash kills processes, at random under load and at every durable
// write, and compares what they have acknowledged with what is there when they
// run again.
package crash
