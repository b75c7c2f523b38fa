// What the pages' scripts take for granted, for the check of their types: plotly.js is there, and elements are those of HTML.

declare const Plotly: any;

interface ParentNode {
  querySelector(selectors: string): any;
  querySelectorAll(selectors: string): NodeListOf<HTMLElement>;
}

interface EventTarget {
  value: any;
  checked: any;
  matches: any;
  closest: any;
}

interface Element {
  blur(): void;
}

interface Document {
  getElementById(id: string): any;
}
