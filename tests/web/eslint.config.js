import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    files: ["**/static/app/*.js", "**/static/sw.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    rules: {
      eqeqeq: ["error", "always", { null: "ignore" }],
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write", "dangerouslySetInnerHTML"].map((property) => ({
          property,
          message: "text of agents must not become markup",
        })),
      ],
      "no-restricted-syntax": [
        "error",
        { selector: "Literal[value='dangerouslySetInnerHTML']", message: "text of agents must not become markup" },
      ],
      "no-shadow": "error",
      "no-var": "error",
      "prefer-const": "error",
    },
  },
  { files: ["**/static/sw.js"], languageOptions: { globals: globals.serviceworker } },
];
