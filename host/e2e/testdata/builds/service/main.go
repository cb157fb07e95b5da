// Command greeter answers HTTP with greetings from a file.
package main

import (
	_ "embed"
	"log"
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/google/uuid"
	"gopkg.in/yaml.v3"

	"example.test/greeter/greet"
)

//go:embed greetings.yaml
var greetings []byte

func main() {
	var words map[string]string
	if err := yaml.Unmarshal(greetings, &words); err != nil {
		log.Fatal(err)
	}
	r := chi.NewRouter()
	r.Use(middleware.Recoverer)
	r.Get("/greet/{language}/{name}", func(w http.ResponseWriter, r *http.Request) {
		word, ok := words[chi.URLParam(r, "language")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("X-Request", uuid.NewString())
		_, _ = w.Write([]byte(greet.Greet(word, chi.URLParam(r, "name"))))
	})
	log.Fatal(http.ListenAndServe(":8080", r))
}
