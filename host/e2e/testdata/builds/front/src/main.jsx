import { h, render } from "preact";
import { greeting } from "./greeting.js";

render(<h1>{greeting}</h1>, document.getElementById("app"));
