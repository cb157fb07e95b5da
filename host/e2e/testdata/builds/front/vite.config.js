export default {
  esbuild: { jsxFactory: "h", jsxFragment: "Fragment" },
  build: { rollupOptions: { output: { entryFileNames: "app.js" } } },
};
