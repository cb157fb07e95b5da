// Package greet words greetings.
package greet

// Greet greets a name with a word.
func Greet(word, name string) string { return word + ", " + name + "!\n" }
